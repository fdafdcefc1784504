"""The learning rate over a run: factors on the optimizer's own, as pure functions of the step."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import unknown_name
from hetmp.optim.schedule_names import SCHEDULES


@dataclass(frozen=True)
class Moment:
    """A step of a run, behind its warm-up.

    Attributes:
        step: from the run's beginning, counted from 0.
        warmup: steps before this part of the run.
        length: steps of this part, 1 or more.
    """

    step: int
    warmup: int
    length: int

    @property
    def since(self) -> int:
        """Steps since the warm-up."""
        return self.step - self.warmup

    @property
    def done(self) -> float:
        """The share of this part that is done, from 0 to 1."""
        return min(1.0, self.since / self.length)


def _constant(now: Moment) -> float:
    return 1.0


def _cosine(now: Moment) -> float:
    """To 0 along half a cosine (Loshchilov and Hutter, "SGDR", 2017, eq. 5 without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * now.done))


def _step(now: Moment, *, gamma: float = 0.1) -> float:
    """A factor *gamma* after each third."""
    return float(gamma ** (now.since // math.ceil(now.length / 3)))


def _linear(now: Moment) -> float:
    return 1 - now.done


def _polynomial(now: Moment, *, power: float = 1.0) -> float:
    return float((1 - now.done) ** power)


def _exponential(now: Moment, *, gamma: float) -> float:
    """A factor *gamma* after each step."""
    return float(gamma**now.since)


def _milestones(now: Moment, *, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """A factor *gamma* at each of the *milestones*, counted from the run's beginning."""
    return float(gamma ** sum(now.step >= milestone for milestone in milestones))


def _onecycle(now: Moment, *, peak: float = 0.3, start: float = 25.0, end: float = 1e4) -> float:
    """Up to 1 and down again along half cosines (Smith, "Super-Convergence", 2018).

    From 1/*start* to 1 in the share *peak* of the steps, then to 1/*start*/*end* at the last
    step: as torch's OneCycleLR.
    """
    last, top = now.length - 1, peak * now.length - 1
    if now.since <= top and top > 0:
        return _between(1 / start, 1.0, now.since / top)
    return _between(1.0, 1 / start / end, min(1.0, (now.since - top) / (last - top)))


def _between(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (math.cos(math.pi * share) + 1)


_FACTORS: dict[str, Callable[..., float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "exponential": _exponential,
    "linear": _linear,
    "milestones": _milestones,
    "onecycle": _onecycle,
    "polynomial": _polynomial,
    "step": _step,
}


def rate(schedule: str, step: int, steps: int, warmup: int = 0, **settings: Any) -> float:
    """Return the factor on the learning rate at a step of a run.

    While it warms up, the factor is (step + 1) / (warmup + 1); the schedule begins with the
    step after, and runs over the rest of *steps*.

    Args:
        schedule: one of ``SCHEDULES``.
        step: counted from 0.
        steps: of the whole run, 1 or more; afterwards what falls to an end stays there.
        warmup: steps of linear warm-up, 0 to *steps*.
        settings: of the schedule: gamma (step, exponential, milestones), power (polynomial),
            milestones (a list of steps), peak, start and end (onecycle).

    Raises:
        HetmpError: an unknown schedule or setting, one that is missing, a number out of range.

    >>> [rate("linear", step, 6, warmup=2) for step in range(7)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    _check(schedule, steps, warmup, settings)
    return _factor(schedule, step, steps, warmup, settings)


def make_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, steps: int, warmup: int = 0, **settings: Any
) -> LambdaLR:
    """Return a scheduler that sets *optimizer*'s rates to ``rate`` times their own.

    Call its ``step()`` after each step of the optimizer. Its ``state_dict()`` is JSON: numbers
    and lists of them; the schedule itself is not in it.

    Args:
        optimizer: any.
        schedule, steps, warmup, settings: see ``rate``.

    Raises:
        HetmpError: as ``rate``.
    """
    _check(schedule, steps, warmup, settings)
    return LambdaLR(optimizer, lambda step: _factor(schedule, step, steps, warmup, settings))


def _factor(
    schedule: str, step: int, steps: int, warmup: int, settings: Mapping[str, Any]
) -> float:
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _FACTORS[schedule](Moment(step, warmup, max(1, steps - warmup)), **settings)


def _check(schedule: str, steps: int, warmup: int, settings: Mapping[str, Any]) -> None:
    if schedule not in _FACTORS:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if not steps >= 1:
        raise HetmpError(f"a schedule is over 1 step or more, got {steps}")
    if not 0 <= warmup <= steps:
        raise HetmpError(f"the warm-up is 0 to {steps} steps, which is all there are, got {warmup}")
    known = dict(list(inspect.signature(_FACTORS[schedule]).parameters.items())[1:])
    for name, value in settings.items():
        if not known:
            raise HetmpError(f"the schedule {schedule} has no settings, got {name!r}: leave it out")
        if name not in known:
            raise unknown_name(f"setting of the schedule {schedule}", name, known)
        limit, holds = _LIMITS[name]
        if not holds(value):
            raise HetmpError(f"schedule {schedule}: {name} is {limit}, got {value!r}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in settings:
            raise HetmpError(f"the schedule {schedule} needs {name}, {_LIMITS[name][0]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_steps(value: Any) -> bool:
    return isinstance(value, Sequence) and all(type(item) is int and item >= 0 for item in value)


_ABOVE_0 = ("a number above 0", lambda value: _is_number(value) and value > 0)

_LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "milestones": ("a list of steps", _are_steps),
    "end": _ABOVE_0,
    "gamma": _ABOVE_0,
    "peak": ("a number between 0 and 1", lambda value: _is_number(value) and 0 < value < 1),
    "power": _ABOVE_0,
    "start": _ABOVE_0,
}
"""Of every setting: its limit in words, and whether a value keeps to it."""
