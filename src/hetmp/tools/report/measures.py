"""Figures of a run's records: medians over its steps, by rank.

A step's time on a rank is reading + compute + exchange + waiting. As the ranks meet in every
exchange, it is about the same on all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetmp.tools.report.reading import Run, RunPart
from hetmp.tools.report.records import PlanRecord, StepRecord, WatchedExchange

Array = npt.NDArray[np.float64]

KINDS = "compute", "exchange", "waiting", "reading"
"""The kinds of a step's time."""

WINDOWS = 120
"""Most points of a curve."""


@dataclass(frozen=True)
class TimeByKind:
    """The seconds of a part's steps, by kind.

    Attributes:
        ranks: the ranks that take part, as the job numbers them.
        median: by kind, (ranks,) medians over the counted steps.
        total: by kind, (ranks,) sums over all steps.
        step: median over the counted steps of the mean time over the ranks, all kinds together.
        images_per_second: the median over the counted steps; NaN if not known.
        counted: number of counted steps: all but the first of the part.
    """

    ranks: tuple[int, ...]
    median: dict[str, Array]
    total: dict[str, Array]
    step: float
    images_per_second: float
    counted: int


@dataclass(frozen=True)
class WindowedCurve:
    """A figure over the steps: the median of each window, and its quartiles.

    Attributes:
        steps: (windows,) number of steps taken at the middle of each window.
        median, low, high: (windows,) median and quartiles.
        per_window: number of steps in a window.
    """

    steps: Array
    median: Array
    low: Array
    high: Array
    per_window: int


def members(part: RunPart) -> tuple[int, ...]:
    """Return the ranks that a part's lists are for, as the job numbers them."""
    count = _rank_count(part)
    plan = plan_of(part)
    if plan is not None and len(plan.members) == count:
        return plan.members
    return tuple(range(count))


def plan_of(part: RunPart) -> PlanRecord | None:
    """Return the plan of a part; None if it is not recorded."""
    return part.record.plan if part.record else None


def shares(part: RunPart) -> tuple[float, ...]:
    """Return each member's share of what the ranks share, 0 to 1; empty if not known.

    Of the channels that are cut; where images are shared, a rank's part of them stands for as much
    of the layer's channels.
    """
    plan = plan_of(part)
    if plan is None or len(plan.members) != len(members(part)):
        return ()
    cut = [layer for layer in plan.layers if layer.scheme != "whole"]
    if any(len(layer.counts) != plan.ranks for layer in cut):
        return ()
    held = [sum(layer.channels * layer.shares[rank] for layer in cut) for rank in plan.members]
    return tuple(part / (sum(held) or 1) for part in held)


def shared(part: RunPart) -> str:
    """Return what the ranks share: ``channels``, ``images``, or both."""
    plan = plan_of(part)
    return "channels" if plan is None else plan.shared


def step_times(part: RunPart) -> TimeByKind | None:
    """Compute the seconds of a part's steps by kind; None if no step has times."""
    ranks = members(part)
    timed = [step for step in part.steps if step.seconds is not None]
    timed = [step for step in timed if len(_seconds(step, "compute")) == len(ranks)]
    if not timed or not ranks:
        return None
    counted = timed[1:] or timed
    every = {kind: _matrix(timed, kind, len(ranks)) for kind in KINDS}
    counted_rows = {kind: rows[len(timed) - len(counted) :] for kind, rows in every.items()}
    per_step = np.sum(list(counted_rows.values()), axis=0).mean(axis=1)
    images = np.array([_images(part, step) for step in counted])
    speed = _divided(images, per_step)
    return TimeByKind(
        ranks,
        {kind: np.median(rows, axis=0) for kind, rows in counted_rows.items()},
        {kind: rows.sum(axis=0) for kind, rows in every.items()},
        float(np.median(per_step)),
        float(np.median(speed[np.isfinite(speed)])) if np.isfinite(speed).any() else np.nan,
        len(counted),
    )


def throughput(run: Run) -> tuple[Array, Array]:
    """Return (steps taken, images per second) of all counted steps, both (steps,)."""
    steps: list[float] = []
    speeds: list[float] = []
    for part in run.parts:
        timed = [step for step in part.steps if step.seconds is not None]
        for step in timed[1:] or timed:
            seconds = _step_seconds(step)
            images = _images(part, step)
            if seconds > 0 and np.isfinite(images):
                steps.append(step.step + 1)
                speeds.append(images / seconds)
    return np.array(steps), np.array(speeds)


def curve(steps: Array, values: Array) -> WindowedCurve:
    """Reduce a figure to at most ``WINDOWS`` points, leaving out values that are not finite."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not len(steps):
        nothing = np.zeros(0)
        return WindowedCurve(nothing, nothing, nothing, nothing, 1)
    size = -(-len(steps) // WINDOWS)
    groups = [slice(first, first + size) for first in range(0, len(steps), size)]
    quartiles = [np.percentile(values[group], (25, 50, 75)) for group in groups]
    low, median, high = np.array(quartiles).T
    return WindowedCurve(
        np.array([np.median(steps[group]) for group in groups]), median, low, high, size
    )


def bytes_received(exchange: WatchedExchange) -> float:
    """Return the bytes that all ranks receive by an exchange in a step."""
    return float(np.nansum(exchange.bytes))


def mean_message(exchanges: Sequence[WatchedExchange]) -> float:
    """Return the mean bytes that all ranks receive in one call; NaN if not known."""
    calls = sum(exchange.calls for exchange in exchanges)
    return sum(map(bytes_received, exchanges)) / calls if calls else np.nan


def layer_seconds(compute: Array, exchange: float, waiting: Array) -> float:
    """Return the seconds that a layer adds to a step, in the mean over the ranks.

    *compute* and *waiting* are its seconds by rank, (ranks,); *exchange* is the seconds of its
    exchanges, alike on all.
    """
    return float(np.mean(compute + waiting)) + exchange


def elapsed(run: Run) -> float:
    """Return the sum of the steps' seconds; NaN if no step has times."""
    seconds = [_step_seconds(step) for step in run.steps if step.seconds is not None]
    return float(np.nansum(seconds)) if seconds else np.nan


def _rank_count(part: RunPart) -> int:
    for step in part.steps:
        if step.seconds is not None:
            return len(step.seconds.compute)
    if part.memory is not None:
        return len(part.memory.parameters)
    return part.record.ranks if part.record else 0


def _images(part: RunPart, step: StepRecord) -> float:
    """Return the number of images of a step; for older runs, that of a whole batch."""
    if step.images is not None:
        return step.images
    batch_size = part.record.config.get("batch_size") if part.record else None
    return float(batch_size) if isinstance(batch_size, int) else np.nan


def _seconds(step: StepRecord, kind: str) -> tuple[float, ...]:
    seconds: tuple[float, ...] = getattr(step.seconds, kind)
    return seconds


def _step_seconds(step: StepRecord) -> float:
    return float(sum(np.mean(by_rank) for kind in KINDS if (by_rank := _seconds(step, kind))))


def _matrix(steps: Sequence[StepRecord], kind: str, ranks: int) -> Array:
    """Return (steps, ranks) seconds; a list that is missing or too short counts as 0."""
    rows = [_seconds(step, kind) for step in steps]
    return np.nan_to_num(np.array([row if len(row) == ranks else (0.0,) * ranks for row in rows]))


def _divided(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below
