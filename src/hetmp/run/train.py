"""A training run, top to bottom: epochs, steps, evaluation, what is kept."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hetmp.checkpoint import Cadence, Folder, Keeping, Position, RunCheckpoints
from hetmp.cluster import AgreedError, Group
from hetmp.run.config import MOVABLE, TrainConfig
from hetmp.run.evaluate import evaluate
from hetmp.run.load_trained import EVALUATION_BATCH
from hetmp.run.metrics import Metrics, StepClock, check_formats
from hetmp.run.prepare import Prepared, on_members
from hetmp.run.progress import About, Progress, silent
from hetmp.run.record import headline, keep_settings, run_record
from hetmp.slicing.recording import FirstSteps
from hetmp.slicing.same_batch import SameBatch

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        steps: taken, in all.
        loss: of the last step.
        accuracy: over all labels of the test set, at the last evaluation.
        stopped: whether it was asked to end before its last step.
        ranks: how many took part.
    """

    steps: int
    loss: float
    accuracy: float
    stopped: bool = False
    ranks: int = 1

    @classmethod
    def from_rank(cls, rank: int, own: "Result", group: Group) -> "Result":
        """*rank*'s result on every rank. Collective."""
        told = np.array([own.steps, own.loss, own.accuracy, own.stopped, own.ranks])
        steps, loss, accuracy, stopped, ranks = group.broadcast(told, rank).tolist()
        return cls(int(steps), loss, accuracy, bool(stopped), int(ranks))


def train(config: TrainConfig, comm: "MPI.Intracomm | None" = None) -> Result:
    """Train as *config* says on the ranks of *comm*. Collective.

    Raises:
        HetmpError: bad input, on every rank at once.
    """
    waiting = Result(0, math.nan, math.nan)
    with silent(config.quiet):
        with Group(comm).together():
            check_formats(config.metrics)
        result, first_member, group = on_members(config, comm, _train, waiting)
    return Result.from_rank(first_member, result, group)


def _train(ready: Prepared) -> Result:
    """Train on ranks that all take part. Collective."""
    config, group, model, stepping = ready.config, ready.group, ready.model, ready.stepping
    workplace, feed = ready.workplace, ready.feed
    steps, per_epoch = ready.steps, ready.per_epoch
    checkpoints = RunCheckpoints(
        model,
        stepping,
        ready.plan,
        {**config.lasting(steps), "images": ready.dataset.about()},
        _keeping(config, group),
        movable=(*MOVABLE, "images"),
    )
    position, resumed = Position(), ""
    if config.resume is not None:
        position, resumed = checkpoints.resume(config.resume, config.out)
    labels_alike = SameBatch(group)
    title, held = f"{config.model} on {config.data}", model.hetmp.plan.held
    shown = About(title, held, steps, per_epoch, position.step)
    with (
        Metrics(group, config.out, config.metrics, after=position.step) as metrics,
        Progress(group, shown, config.view, config.quiet) as progress,
    ):
        about = run_record(config, model, ready.plan, workplace.places, workplace.threads)
        metrics.write("run", **about, steps=steps, resumed=position.step)
        keep_settings(workplace.told, ready.plan, group)
        lines = [ready.sharing.told, headline(config, model, ready.dataset, steps), resumed]
        progress.begin("\n".join(filter(None, lines)))
        clock, stopping = StepClock(model), False
        left = steps - position.step
        first = FirstSteps(model, config.watch, left, workplace.device, workplace.resident)
        epochs = config.total_epochs(per_epoch) if position.step < steps else 0
        for epoch in range(position.epoch, epochs):
            model.train()
            waited = feed.waited
            for images, labels in feed.shuffled(
                config.batch_size,
                seed=config.seed,
                epoch=epoch,
                start=position.batch,
                drop_last=config.drop_last,
            ):
                labels_alike.check(labels)
                clock.start()
                rate = stepping.optimizer.param_groups[0]["lr"]
                try:
                    with first.step():
                        taken = stepping.take(images, labels)
                    reading, waited = feed.waited - waited, feed.waited
                    asked = workplace.interruption.asked
                    seconds, stopping = clock.stop(asked, reading, metrics.error)
                except AgreedError as error:
                    raise type(error)(f"{error}{checkpoints.last_good()}") from error
                record = {
                    "loss": taken.loss,
                    "accuracy": taken.correct / labels.numel(),
                    "lr": rate,
                }
                metrics.write(
                    "step", step=position.step, epoch=epoch, **record, seconds=seconds,
                    images=len(labels), **({"skipped": True} if taken.skipped else {}),
                )  # fmt: skip
                stepping.schedule.step()
                position.took(record, per_epoch)
                found = first.found(stepping.optimizer, position.step, len(labels))
                for kind, about in found.items():
                    metrics.write(kind, **about)
                stopping = stopping and position.step < steps
                told = taken.loss, record["accuracy"], len(labels), seconds
                progress.step(position.step, epoch, *told)
                if position.step == steps or (stopping and position.batch):
                    break
                if position.batch:  # at the end of an epoch it is evaluated first
                    progress.note(checkpoints.passed(position))
            if stopping and position.batch:
                break
            began = time.perf_counter()
            with stepping.evaluated(), stepping.casting():
                test_loss, accuracy = evaluate(model, ready.test_feed, EVALUATION_BATCH)
            record = {"step": position.step, "loss": test_loss, "accuracy": accuracy}
            evaluating = time.perf_counter() - began
            metrics.write("evaluation", epoch=epoch, **record, seconds=round(evaluating, 6))
            position.evaluated(record)
            progress.evaluated(accuracy, evaluating)
            if position.step < steps:
                progress.note(checkpoints.passed(position, epoch_ended=True))
            if stopping:
                break
        if config.checkpoint_every is not None or stopping:
            progress.note(checkpoints.save(position))
        progress.note(checkpoints.finish())
        result = Result(
            position.step, position.last("loss"), position.accuracy, stopping, group.size
        )
        if stopping:
            metrics.write("stopped", steps=result.steps, loss=result.loss)
        else:
            metrics.write("end", steps=result.steps, loss=result.loss, accuracy=result.accuracy)
        metrics.finish()
    if config.out and not stopping:
        with stepping.evaluated():
            checkpoints.save_network(config.out / "model.h5", position.step)
    return result


def _keeping(config: TrainConfig, group: Group) -> Keeping:
    """How the run is saved; what an earlier one left half-written is removed. Collective."""
    if config.out is None:
        return Keeping(None, None)
    folder = Folder(config.out / "checkpoints", config.keep, config.keep_every)
    with group.together():
        if group.is_root:
            folder.tidy()
    cadence = Cadence.parse(config.checkpoint_every) if config.checkpoint_every else None
    return Keeping(folder, cadence, config.save_behind, config.on_save_error == "stop")
