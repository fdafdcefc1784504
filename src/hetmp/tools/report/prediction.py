"""A run's step beside the one that its plan predicts, and beside other ways to use the ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from hetmp.tools.report.measures import plan_of, step_times
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.text import percent, seconds_text

KINDS = "compute", "exchange", "waiting"
"""The parts of a predicted step."""

ALONE = "the fastest rank alone"
"""How a plan names the step of one rank."""

FAR = 1.25
"""Largest ratio between the measured and the predicted step, either way, of a profile that fits."""

SEEN = 0.02
"""Least share of the predicted step by which a part must be off to be named."""


@dataclass(frozen=True)
class Compared:
    """A measured step, and what its plan predicts. Seconds; of kinds, in the mean over the ranks.

    Attributes:
        ranks: how many take part.
        measured: the step, without reading: it is no part of a prediction.
        predicted: the step.
        measured_kinds: the measured seconds by kind.
        predicted_kinds: the predicted seconds by kind; empty if the plan does not say.
        alternatives: the predicted steps by other ways to use the ranks.
    """

    ranks: int
    measured: float
    predicted: float
    measured_kinds: Mapping[str, float]
    predicted_kinds: Mapping[str, float]
    alternatives: Mapping[str, float]

    @property
    def misses(self) -> list[tuple[str, float]]:
        """Return the kinds that are off by enough to be named, and by how much, largest first."""
        off = [
            (kind, self.measured_kinds[kind] - expected)
            for kind, expected in self.predicted_kinds.items()
        ]
        return sorted(
            (pair for pair in off if abs(pair[1]) >= SEEN * self.predicted),
            key=lambda pair: -abs(pair[1]),
        )


def compared(part: RunPart) -> Compared | None:
    """Compare a part of a run with its plan; None if no step has times or nothing was predicted."""
    plan, times = plan_of(part), step_times(part)
    if plan is None or not plan.predicted_seconds or times is None:
        return None
    means = {kind: float(times.median[kind].mean()) for kind in KINDS}
    reading = float(times.median["reading"].mean())
    layers = [layer for layer in plan.predicted if len(layer.idle) == len(times.ranks)]
    expected: dict[str, float] = {}
    if layers:
        exchange = float(sum(layer.exchange for layer in layers))
        waiting = float(sum(np.mean(layer.idle) for layer in layers))
        # What belongs to no layer, as the optimizer's step, is computing.
        computing = max(0.0, plan.predicted_seconds - exchange - waiting)
        expected = {"compute": computing, "exchange": exchange, "waiting": waiting}
    others = {
        name: seconds
        for name, seconds in plan.predicted_alternatives.items()
        if isfinite(seconds) and seconds > 0
    }
    return Compared(
        len(times.ranks), times.step - reading, plan.predicted_seconds, means, expected, others
    )


def sentences(facts: Compared | None) -> tuple[str, ...]:
    """Say how good the prediction was, what one rank would take, and which parts are off."""
    if facts is None:
        return ()
    off = facts.measured / facts.predicted - 1
    said = [
        f"A step took {seconds_text(facts.measured)}; {seconds_text(facts.predicted)} were "
        f"predicted ({_signed(off)}). {_beside_one_rank(facts)}".strip()
    ]
    if facts.misses:
        said.append(
            f"Off the prediction: {'; '.join(_miss(facts, kind) for kind, _ in facts.misses)}."
        )
    if not 1 / FAR <= 1 + off <= FAR:
        said.append(f"The profile no longer fits: {_remedy(facts)}")
    return tuple(said)


def _beside_one_rank(facts: Compared) -> str:
    """Compare the measured step with the predicted one of the fastest rank alone."""
    alone = facts.alternatives.get(ALONE)
    if alone is None or facts.ranks == 1:
        return ""
    begun = f"{ALONE[0].upper()}{ALONE[1:]} would take {seconds_text(alone)} by prediction"
    ratio = alone / facts.measured
    if ratio >= 1:
        return f"{begun}: this run is {ratio:.2f} times as fast."
    return f"{begun}: it would be {1 / ratio:.2f} times as fast as this run."


def _miss(facts: Compared, kind: str) -> str:
    names = {"compute": "computing", "exchange": "exchanges"}
    measured, expected = facts.measured_kinds[kind], facts.predicted_kinds[kind]
    return (
        f"{names.get(kind, kind)} took {seconds_text(measured)}, predicted were "
        f"{seconds_text(expected)}"
    )


def _remedy(facts: Compared) -> str:
    """Say what to do about a prediction that is far off, by the part that is off most."""
    again = "measure and plan again (`hetmp profile`, `--weights auto`)"
    if not facts.misses:
        return f"{again}."
    kind, seconds = facts.misses[0]
    then = "faster" if seconds > 0 else "slower"
    causes = {
        "compute": f"the devices were {then} when they were measured, or the batch or precision "
        "was another",
        "exchange": f"the links were {then} when they were measured",
        "waiting": "a rank is slower than when it was measured, or something else runs there"
        if seconds > 0
        else "the ranks are more even than when they were measured",
    }
    return f"{causes[kind]}. So {again}."


def _signed(off: float) -> str:
    return f"{'+' if off >= 0 else '−'}{percent(abs(off))}"
