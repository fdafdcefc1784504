"""The state of a run that the progress display shows: steps, speed, loss."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hetmp.run.metrics import KINDS

RECENT = 32
"""Number of the last steps over which recent speed and seconds are averaged."""

POINTS = 96
"""Most points of the loss curve."""

Seconds = Mapping[str, Sequence[float]]
"""Seconds by kind (compute, exchange, waiting, reading), each a number per rank."""


@dataclass(frozen=True)
class RunDescription:
    """Title and size of a run.

    Attributes:
        title: network and data set.
        shares: share of the channels of each rank; only ratios matter.
        steps: number of steps of the whole run.
        per_epoch: steps in an epoch.
        before: steps taken before this run was resumed; 0 for a new run.
    """

    title: str
    shares: Sequence[float]
    steps: int
    per_epoch: int
    before: int = 0

    @property
    def epochs(self) -> int:
        """Return the number of epochs that the whole run begins."""
        return math.ceil(self.steps / self.per_epoch)


@dataclass
class Curve:
    """A curve of limited length: with many values, each point is the mean of several."""

    points: list[float] = field(default_factory=list)
    each: int = 1
    _sum: float = 0.0
    _count: int = 0

    def add(self, value: float) -> None:
        """Add a value, unless it is not finite."""
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self.each:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) == POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points, self.each = [sum(pair) / 2 for pair in pairs], 2 * self.each


class Standing:
    """The state of a run.

    Speed counts training steps only; the time left also counts evaluations.

    Attributes:
        step: number of steps taken.
        epoch: the epoch of the last step, from 0.
        loss, accuracy: of the last step.
        test: accuracy of the last evaluation; None before the first.
        losses: of this part of the run.

    Args:
        clock: the time in seconds, from any moment.
    """

    def __init__(self, run: RunDescription, clock: Callable[[], float] = time.perf_counter) -> None:
        self.run, self._clock = run, clock
        self.step, self.epoch = run.before, min(run.before, run.steps - 1) // run.per_epoch
        self.loss = self.accuracy = math.nan
        self.test: float | None = None
        self.losses = Curve()
        self._recent: deque[tuple[float, int, Seconds]] = deque(maxlen=RECENT)
        self._began = self._last = self._clock()
        self._first = 0.0
        self._images, self._training = 0, 0.0
        self._epoch_images, self._epoch_training, self._epoch_ended = 0, 0.0, False
        self._evaluations, self._evaluating = 0, 0.0

    def begin(self) -> None:
        """Start the clock before the first step."""
        self._began = self._last = self._clock()

    def took(
        self, step: int, epoch: int, loss: float, accuracy: float, images: int, seconds: Seconds
    ) -> None:
        """Record a step that has ended. Cheap.

        Args:
            step: the number of steps taken, this one included.
            epoch: its epoch, from 0.
            loss, accuracy: of its batch; *accuracy* is from 0 to 1.
            images: number of images in the batch.
            seconds: by kind and rank.
        """
        now = self._clock()
        passed, self._last = now - self._last, now
        if self.step == self.run.before:
            self._first = passed
        self.step, self.epoch, self.loss, self.accuracy = step, epoch, loss, accuracy
        self.losses.add(loss)
        self._recent.append((passed, images, seconds))
        self._images, self._training = self._images + images, self._training + passed
        if self._epoch_ended:
            self._epoch_images, self._epoch_training, self._epoch_ended = 0, 0.0, False
        self._epoch_images += images
        self._epoch_training += passed

    def evaluated(self, accuracy: float, seconds: float) -> None:
        """Record an evaluation that took *seconds*."""
        self.test = accuracy
        self._evaluations, self._evaluating = self._evaluations + 1, self._evaluating + seconds
        self._epoch_ended = True
        self._last = self._clock()

    @property
    def batch(self) -> int:
        """Return the number of steps taken in the epoch."""
        return self.step - self.epoch * self.run.per_epoch

    @property
    def elapsed(self) -> float:
        """Return the seconds since the first step began."""
        return self._clock() - self._began

    @property
    def images_per_second(self) -> float:
        """Return the images per second over all steps of this part of the run."""
        return self._images / max(1e-9, self._training)

    @property
    def images_per_second_of_epoch(self) -> float:
        """Return the images per second over the steps of the epoch, until the next one begins."""
        return self._epoch_images / max(1e-9, self._epoch_training)

    @property
    def recent_images_per_second(self) -> float:
        """Return the images per second over the last steps."""
        images = sum(images for _, images, _ in self._recent)
        return images / max(1e-9, sum(passed for passed, _, _ in self._recent))

    @property
    def recent_seconds(self) -> float:
        """Return the mean seconds of the last steps."""
        return sum(passed for passed, _, _ in self._recent) / max(1, len(self._recent))

    @property
    def left(self) -> float | None:
        """Estimate the seconds until the run ends; None before the first step."""
        steps = self.step - self.run.before
        if steps == 0:
            return None
        # The first step is no measure of the others: much is made ready in it.
        first = self._first if steps > 1 else 0.0
        per_step = (self._training - first) / max(1, steps - 1)
        per_evaluation = self._evaluating / max(1, self._evaluations)
        evaluations = self.run.epochs - self.run.before // self.run.per_epoch
        return per_step * (self.run.steps - self.step) + per_evaluation * max(
            0, evaluations - self._evaluations
        )

    def recent_by_rank(self) -> dict[str, list[float]]:
        """Return the mean seconds of the last steps, by kind and rank; empty before the first."""
        if not self._recent:
            return {}
        steps = len(self._recent)
        by_kind = {
            kind: zip(*(seconds[kind] for _, _, seconds in self._recent), strict=True)
            for kind in KINDS
        }
        return {
            kind: [sum(of_rank) / steps for of_rank in by_rank] for kind, by_rank in by_kind.items()
        }
