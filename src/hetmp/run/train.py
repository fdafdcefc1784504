"""A training run, top to bottom: epochs, steps, evaluation, checkpoints."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from hetmp.checkpoint import Cadence, Folder, Keeping, Position, RunCheckpoints
from hetmp.cluster import AgreedError, Group
from hetmp.run.config import MOVABLE, TrainConfig
from hetmp.run.evaluate import evaluate
from hetmp.run.load_trained import EVALUATION_BATCH
from hetmp.run.log import RunLog, open_log
from hetmp.run.metrics import StepClock, check_formats
from hetmp.run.own_images import OwnImages
from hetmp.run.prepare import Prepared, run_prepared
from hetmp.run.progress import silent
from hetmp.slicing.recording import FirstSteps
from hetmp.slicing.rows import Input
from hetmp.slicing.same_batch import SameBatch

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        steps: total number of steps taken.
        loss: loss of the last step.
        accuracy: share of all test labels predicted, 0 to 1, at the last evaluation.
        stopped: whether a signal ended it before its last step.
        ranks: number of ranks that took part.
    """

    steps: int
    loss: float
    accuracy: float
    stopped: bool = False
    ranks: int = 1

    @classmethod
    def from_rank(cls, rank: int, own: "Result", group: Group) -> "Result":
        """Return the result of *rank* on every rank of *group*. Collective.

        *own* is this rank's result; only that of *rank* is looked at.
        """
        figures = np.array([own.steps, own.loss, own.accuracy, own.stopped, own.ranks])
        steps, loss, accuracy, stopped, ranks = group.broadcast(figures, rank).tolist()
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
        result, first_member, group = run_prepared(config, comm, _train, waiting)
    return Result.from_rank(first_member, result, group)


def _train(ready: Prepared) -> Result:
    """Train on ranks that all take part. Collective."""
    config, steps = ready.config, ready.steps
    checkpoints = RunCheckpoints(
        ready.model,
        ready.train_step,
        ready.plan,
        {**config.lasting(steps), "images": ready.dataset.describe_images()},
        _keeping(config, ready.group),
        movable=(*MOVABLE, "images"),
    )
    position, resumed = Position(), ""
    if config.resume is not None:
        position, resumed = checkpoints.resume(config.resume, config.out)
    with open_log(ready, position.step) as log:
        log.begin(resumed)
        training = Training(ready, checkpoints, position, log)
        for epoch in training.epochs_left():
            training.train_epoch(epoch)
            if training.stopping and position.batch:
                break
            training.evaluate_epoch(epoch)
            if training.stopping:
                break
        if config.checkpoint_every is not None or training.stopping:
            log.note(checkpoints.save(position))
        log.note(checkpoints.finish())
        log.end(position, training.stopping)
    if config.out and not training.stopping:
        with ready.train_step.evaluated():
            checkpoints.save_network(config.out / "model.h5", position.step)
    return Result(
        position.step, position.last("loss"), position.accuracy, training.stopping, ready.group.size
    )


class Training:
    """The loop of a run.

    Attributes:
        position: the run's progress, as a checkpoint saves it.
        stopping: whether a signal asked it to end before its last step.
    """

    def __init__(
        self, ready: Prepared, checkpoints: RunCheckpoints, position: Position, log: RunLog
    ) -> None:
        self._ready, self._checkpoints, self._log = ready, checkpoints, log
        self.position, self.stopping = position, False
        config, model, left = ready.config, ready.model, ready.steps - position.step
        self._same_batch, self._clock = SameBatch(ready.group), StepClock(model)
        self._first = FirstSteps(model, config.watch, left, ready.setup.device, ready.resident)

    def epochs_left(self) -> range:
        """Return the epochs that have steps left; the first may have begun."""
        if self.position.step >= self._ready.steps:
            return range(0)
        epochs = self._ready.config.total_epochs(self._ready.per_epoch)
        return range(self.position.epoch, epochs)

    def train_epoch(self, epoch: int) -> None:
        """Take the remaining steps of an epoch, or fewer if the run ends. Collective."""
        config, feed, position = self._ready.config, self._ready.feed, self.position
        self._ready.model.train()
        own = OwnImages(self._ready.model, config.accumulate)
        waited = feed.waited
        for images, labels in feed.shuffled(
            config.batch_size,
            seed=config.seed,
            epoch=epoch,
            start=position.batch,
            drop_last=config.drop_last,
            needed=own.needed,
        ):
            self._step(epoch, own.given(images, labels), labels, feed.waited - waited)
            waited = feed.waited
            if position.step == self._ready.steps or (self.stopping and position.batch):
                break
            if position.batch:  # at the end of an epoch it is evaluated first
                self._log.note(self._checkpoints.passed(position))

    def _step(self, epoch: int, images: Input, labels: Tensor, reading: float) -> None:
        """Take a step and record it. Collective.

        Args:
            images: (n, c, *spatial), the whole batch; or those that this rank needs.
            labels: (n,) or (n, *spatial), whole.
            reading: seconds that this rank waited for them.
        """
        ready, position, train_step = self._ready, self.position, self._ready.train_step
        self._same_batch.check(labels)
        self._clock.start()
        rate = train_step.optimizer.param_groups[0]["lr"]
        try:
            with self._first.step():
                result = train_step.take(images, labels)
            ready.model.hetmp.group.slowdown.worked()  # since the last exchange, if there was one
            asked = ready.interruption.asked
            seconds, asked = self._clock.stop(asked, reading, self._log.error)
        except AgreedError as error:
            raise type(error)(f"{error}{self._checkpoints.last_good()}") from error
        figures = {"loss": result.loss, "accuracy": result.correct / labels.numel(), "lr": rate}
        self._log.step(position.step, epoch, figures, result.skipped, seconds, len(labels))
        train_step.schedule.step()
        position.took(figures, ready.per_epoch)
        self._log.records(self._first.due_records(train_step.optimizer, position.step, len(labels)))
        self.stopping = asked and position.step < ready.steps

    def evaluate_epoch(self, epoch: int) -> None:
        """Evaluate on the test set, record the result, and save if it is time to. Collective."""
        ready, position = self._ready, self.position
        began = time.perf_counter()
        with ready.train_step.evaluated(), ready.train_step.casting():
            loss, accuracy = evaluate(ready.model, ready.test_feed, EVALUATION_BATCH)
        figures = {"step": position.step, "loss": loss, "accuracy": accuracy}
        self._log.evaluated(epoch, figures, time.perf_counter() - began)
        position.evaluated(figures)
        if position.step < ready.steps:
            self._log.note(self._checkpoints.passed(position, epoch_ended=True))


def _keeping(config: TrainConfig, group: Group) -> Keeping:
    """Return how the run is saved; remove what an earlier run left half-written. Collective."""
    if config.out is None:
        return Keeping(None, None)
    folder = Folder(config.out / "checkpoints", config.keep, config.keep_every)
    with group.together():
        if group.is_root:
            folder.tidy()
    cadence = Cadence.parse(config.checkpoint_every) if config.checkpoint_every else None
    return Keeping(folder, cadence, config.save_behind, config.on_save_error == "stop")
