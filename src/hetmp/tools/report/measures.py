"""Arithmetic on what a run recorded: medians over its steps, by rank. No drawing, no words.

A step's time on a rank is reading + compute + exchange + waiting, and as the ranks meet in every
exchange, about the same on all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetmp.tools.report.reading import Run, RunPart
from hetmp.tools.report.records import PlanRecord, StepRecord, WatchedExchange

Array = npt.NDArray[np.float64]

KINDS = "compute", "exchange", "waiting", "reading"
"""What a step's time goes to."""

WINDOWS = 120
"""Points of a curve, at most."""


@dataclass(frozen=True)
class TimeByKind:
    """Where the seconds of a part's steps went.

    Attributes:
        ranks: that take part, as the job numbers them.
        median: by kind, of each rank, over the counted steps.
        total: by kind, of each rank, over all steps.
        step: the median of a step's time, all kinds together, in the mean over the ranks.
        images_per_second: the median over the counted steps; NaN where it is not known.
        counted: how many steps the medians are over: all but the first of the part.
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
        steps: how many steps were taken at the middle of each window.
        per_window: how many steps a window has.
    """

    steps: Array
    median: Array
    low: Array
    high: Array
    per_window: int


def members(part: RunPart) -> tuple[int, ...]:
    """The ranks of a part's lists, as the job numbers them."""
    count = _rank_count(part)
    plan = plan_of(part)
    if plan is not None and len(plan.members) == count:
        return plan.members
    return tuple(range(count))


def plan_of(part: RunPart) -> PlanRecord | None:
    """The plan that a part obeyed."""
    return part.about.plan if part.about else None


def shares(part: RunPart) -> tuple[float, ...]:
    """Each member's share of all channels that are cut, 0 to 1; empty where it is not known."""
    plan = plan_of(part)
    if plan is None or len(plan.members) != len(members(part)):
        return ()
    cut = [layer for layer in plan.layers if layer.scheme != "whole"]
    if any(len(layer.counts) != plan.ranks for layer in cut):
        return ()
    held = [sum(layer.counts[rank] for layer in cut) for rank in plan.members]
    return tuple(count / max(1, sum(held)) for count in held)


def step_times(part: RunPart) -> TimeByKind | None:
    """Where a part's steps' time went; None where no step has times."""
    ranks = members(part)
    timed = [step for step in part.steps if step.seconds is not None]
    timed = [step for step in timed if len(_seconds(step, "compute")) == len(ranks)]
    if not timed or not ranks:
        return None
    counted = timed[1:] or timed
    every = {kind: _matrix(timed, kind, len(ranks)) for kind in KINDS}
    kept = {kind: rows[len(timed) - len(counted) :] for kind, rows in every.items()}
    per_step = np.sum(list(kept.values()), axis=0).mean(axis=1)
    images = np.array([_images(part, step) for step in counted])
    speed = _divided(images, per_step)
    return TimeByKind(
        ranks,
        {kind: np.median(rows, axis=0) for kind, rows in kept.items()},
        {kind: rows.sum(axis=0) for kind, rows in every.items()},
        float(np.median(per_step)),
        float(np.median(speed[np.isfinite(speed)])) if np.isfinite(speed).any() else np.nan,
        len(counted),
    )


def throughput(run: Run) -> tuple[Array, Array]:
    """(steps taken, images per second) of all steps that are counted, of all parts."""
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
    """A figure of many steps as at most ``WINDOWS`` points. What is not finite is left out."""
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
    """Bytes that all ranks receive by an exchange in a step."""
    return float(np.nansum(exchange.bytes))


def mean_message(exchanges: Sequence[WatchedExchange]) -> float:
    """Bytes that all ranks receive in one call, on average; NaN where it is not known."""
    calls = sum(exchange.calls for exchange in exchanges)
    return sum(map(bytes_received, exchanges)) / calls if calls else np.nan


def layer_seconds(compute: Array, exchange: float, waiting: Array) -> float:
    """What a layer adds to a step: about the same on every rank, so the mean over them."""
    return float(np.mean(compute + waiting)) + exchange


def elapsed(run: Run) -> float:
    """Seconds that all steps took together; NaN where no step has times."""
    told = [_step_seconds(step) for step in run.steps if step.seconds is not None]
    return float(np.nansum(told)) if told else np.nan


def _rank_count(part: RunPart) -> int:
    for step in part.steps:
        if step.seconds is not None:
            return len(step.seconds.compute)
    if part.memory is not None:
        return len(part.memory.parameters)
    return part.about.ranks if part.about else 0


def _images(part: RunPart, step: StepRecord) -> float:
    """Of a step's batch; older runs recorded only how many a whole batch has."""
    if step.images is not None:
        return step.images
    told = part.about.config.get("batch_size") if part.about else None
    return float(told) if isinstance(told, int) else np.nan


def _seconds(step: StepRecord, kind: str) -> tuple[float, ...]:
    told: tuple[float, ...] = getattr(step.seconds, kind)
    return told


def _step_seconds(step: StepRecord) -> float:
    return float(sum(np.mean(told) for kind in KINDS if (told := _seconds(step, kind))))


def _matrix(steps: Sequence[StepRecord], kind: str, ranks: int) -> Array:
    """(steps, ranks); a list that is missing or too short counts as 0."""
    rows = [_seconds(step, kind) for step in steps]
    return np.nan_to_num(np.array([row if len(row) == ranks else (0.0,) * ranks for row in rows]))


def _divided(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below
