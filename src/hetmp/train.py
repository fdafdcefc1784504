"""A training run, top to bottom: data, model, optimizer, epochs, evaluation."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hetmp import data, models
from hetmp.checkpoint import Cadence, Folder, Keeping, Position, RunCheckpoints
from hetmp.comm import AgreedError, Group, arranged, check_world
from hetmp.config import MOVABLE, TrainConfig
from hetmp.data import Augmentation, Dataset, Feed, Reading
from hetmp.device import choose_device, share_cores
from hetmp.evaluation import evaluate
from hetmp.interruption import Interruption
from hetmp.metrics import MetricsFile, StepClock
from hetmp.pace import check_slowdown
from hetmp.placement import Place, gather_places, show_placement
from hetmp.plan import Plan
from hetmp.precision import autocast_of, casting, wire_of
from hetmp.progress import Progress
from hetmp.run_record import headline, keep_settings, run_record
from hetmp.sharing import Sharing, among_members, share_work
from hetmp.slicing import Tuning, slice_model
from hetmp.slicing.same_batch import SameBatch
from hetmp.steps import Steps
from hetmp.trained import EVALUATION_BATCH, check_output
from hetmp.workload import load_dataset, outline

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


@dataclass(frozen=True)
class Workplace:
    """What this rank works with.

    Attributes:
        told: the run's configuration, before ranks of a host became neighbours.
        places: of all ranks of the job.
        device, threads: of this rank.
        autocast: what this rank's convolutions are computed in, if not as the weights are.
        slowdown: of this rank, on purpose.
        interruption: whether it was asked to end the run.
    """

    told: TrainConfig
    places: tuple[Place, ...]
    device: torch.device
    threads: int
    autocast: torch.dtype | None
    slowdown: float
    interruption: Interruption


def train(config: TrainConfig, comm: "MPI.Intracomm | None" = None) -> Result:
    """Train as *config* says on the ranks of *comm*. Collective.

    Raises:
        HetmpError: bad input, on every rank at once.
    """
    group = Group(comm)
    with group.together():
        if comm is None:
            check_world(group)
        if config.slowdown:
            check_slowdown(config.slowdown, group.size)
        torch.manual_seed(config.seed)
    dataset = load_dataset(config, group)
    with group.together():
        augmentation(config).check(dataset)
    comm, order = arranged(comm, group)
    group, told, config = Group(comm), config, config.in_order(order)
    # Without a folder there is nothing to stop for: signals then do what they do to any program.
    heeded = (config.stop_signal, "TERM") if config.out else ()
    with Interruption(heeded) as interruption:
        return _train_arranged(config, told, comm, group, dataset, interruption)


def _train_arranged(
    config: TrainConfig,
    told: TrainConfig,
    comm: "MPI.Intracomm | None",
    group: Group,
    dataset: Dataset,
    interruption: Interruption,
) -> Result:
    """Train on the ranks of *comm*, of which those of a host are neighbours. Collective."""
    threads = share_cores(group)
    device = choose_device(group, config.device)
    places = gather_places(group, device, threads)
    if group.is_root:
        show_placement(places)
    shape = (config.batch_size, *dataset.input_shape)
    example = torch.empty(shape, dtype=getattr(torch, config.dtype), device="meta")
    autocast = autocast_of(config.autocast, group)
    with casting(autocast, device):
        sharing = share_work(
            config, partial(outline, config, dataset), example, group, device, _tuning(config)
        )
    slowdown = config.slowdown[group.rank] if config.slowdown else 1.0
    workplace = Workplace(told, places, device, threads, autocast, slowdown, interruption)

    def run(members: "MPI.Intracomm | None", plan: Plan | None) -> Result:
        return _train(config, members, dataset, sharing, plan, workplace)

    waiting = Result(0, math.nan, math.nan)
    result: Result = among_members(comm, group, sharing.plan, run, waiting)
    return Result.from_rank(sharing.first_member, result, group)


def augmentation(config: TrainConfig) -> Augmentation:
    """What happens to the training images."""
    return Augmentation(config.flip, config.crop)


def _tuning(config: TrainConfig) -> Tuning:
    return Tuning(
        shared_memory=not config.no_shared_memory,
        regather=config.regather,
        rounded=config.rounded,
        wire=wire_of(config),
    )


def _train(
    config: TrainConfig,
    comm: "MPI.Intracomm | None",
    dataset: Dataset,
    sharing: Sharing,
    plan: Plan | None,
    workplace: Workplace,
) -> Result:
    """Train on ranks that all take part, by *plan* or by the weights of *sharing*. Collective."""
    group, device = Group(comm), workplace.device
    with group.together():
        dtype = getattr(torch, config.dtype)
        torch.manual_seed(config.seed)
        module = _build(config, dataset, group).to(dtype)
        per_epoch = data.count_batches(len(dataset.train), config.batch_size, config.drop_last)
    example = torch.empty((2, *dataset.input_shape), dtype=dtype, device="meta")
    model = slice_model(
        module,
        plan or sharing.weights,
        comm,
        example_input=example,
        init=models.layer_by_layer(module) if config.layerwise else None,
        device=device,
        strict=config.strict,
        tuning=_tuning(config),
    )
    del module
    check_output(model.hetmp.graph.training, dataset, config.model)
    model.hetmp.group.pace.factor = workplace.slowdown
    steps = config.total_steps(per_epoch)
    with group.together():
        stepping = Steps(config, model, steps, device, workplace.autocast)
    whole_plan = sharing.plan or model.hetmp.plan
    checkpoints = RunCheckpoints(
        model,
        stepping,
        whole_plan,
        {**config.lasting(steps), "images": dataset.about()},
        _keeping(config, group),
        movable=(*MOVABLE, "images"),
    )
    reading = Reading(model.hetmp.plan.held, config.readers, device, dtype)
    feed = Feed(dataset, dataset.train, group, reading, augmentation(config))
    test_feed = Feed(dataset, dataset.test, group, reading)
    position, resumed = Position(), ""
    if config.resume is not None:
        position, resumed = checkpoints.resume(config.resume, config.out)
    labels_alike = SameBatch(group)
    path = config.out / "metrics.jsonl" if config.out else None
    with (
        MetricsFile(group, path, after=position.step) as metrics,
        Progress(group, steps, position.step) as progress,
    ):
        about = run_record(config, model, whole_plan, workplace.places, workplace.threads)
        metrics.write("run", **about, steps=steps, resumed=position.step)
        keep_settings(workplace.told, whole_plan, group)
        lines = [sharing.told, headline(config, model, dataset, steps), resumed]
        progress.begin("\n".join(filter(None, lines)))
        clock, stopping = StepClock(model), False
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
                    taken = stepping.take(images, labels)
                except AgreedError as error:
                    raise AgreedError(f"{error}{checkpoints.last_good()}") from error
                seconds, stopping = clock.stop(workplace.interruption.asked, feed.waited - waited)
                waited = feed.waited
                record = {
                    "loss": taken.loss,
                    "accuracy": taken.correct / labels.numel(),
                    "lr": rate,
                }
                metrics.write(
                    "step", step=position.step, epoch=epoch, **record, seconds=seconds,
                    **({"skipped": True} if taken.skipped else {}),
                )  # fmt: skip
                stepping.schedule.step()
                position.took(record, per_epoch)
                stopping = stopping and position.step < steps
                progress.step(position.step, epoch, taken.loss, len(labels))
                if position.step == steps or (stopping and position.batch):
                    break
                if position.batch:  # at the end of an epoch it is evaluated first
                    progress.note(checkpoints.passed(position))
            if stopping and position.batch:
                break
            with stepping.evaluated(), stepping.casting():
                test_loss, accuracy = evaluate(model, test_feed, EVALUATION_BATCH)
            record = {"step": position.step, "loss": test_loss, "accuracy": accuracy}
            metrics.write("evaluation", epoch=epoch, **record)
            position.evaluated(record)
            progress.evaluated(epoch, accuracy)
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


def _build(config: TrainConfig, dataset: Dataset, group: Group) -> nn.Module:
    """The whole network; the values are rank 0's, so other ranks spare the memory.

    Layer by layer, no rank has values.
    """
    shipped = config.model in models.names()
    here = not config.layerwise and (group.is_root or not shipped)
    with nullcontext() if here else torch.device("meta"):
        return models.build(config.model, dataset.input_shape, dataset.classes)
