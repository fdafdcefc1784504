"""Why each layer of a plan follows its scheme: what a step would take with another one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from hetmp.core.text import bytes_text, digits
from hetmp.exchange import received_of_sum
from hetmp.ops import SCHEMES, SchemeName
from hetmp.planner.parts import from_to, parts
from hetmp.planner.planner import Planned
from hetmp.planner.predict import Prediction
from hetmp.planner.splits import WORTH
from hetmp.planner.switches import Switch, Switches

SAME = 1e-3
"""Share of a step below which two predictions are called equal."""


@dataclass(frozen=True)
class Reason:
    """Why layers follow their scheme.

    Attributes:
        layers: their paths, in order.
        scheme: what they follow.
        text: what a step would take with the scheme that comes next, or why there is none.
        others: what it would take with the schemes after that, in few words; empty if none.
    """

    layers: tuple[str, ...]
    scheme: SchemeName
    text: str
    others: str


def reasons(planned: Planned) -> list[Reason]:
    """Say why the parts of a plan follow their schemes; neighbours with one reason are joined.

    A part is taken to switch alone, or together with its neighbours of the same scheme before it,
    behind it or on both sides: whichever is predicted to be fastest. Empty where no layer had a
    choice: one rank, or no other scheme was asked for.
    """
    if planned.switches is None or len(planned.plan.members) == 1:
        return []
    words = _Words(planned, planned.switches())
    schemes = {layer.name: layer.scheme for layer in planned.plan.layers}
    made: list[Reason] = []
    for scheme, run in groupby(parts(planned.plan), lambda part: schemes[part[0]]):
        neighbours = list(run)
        for i, part in enumerate(neighbours):
            spans = {
                _joined(neighbours[first:last])
                for first in (i, 0)
                for last in (i + 1, len(neighbours))
            }
            made.append(words.of(part, scheme, sorted(spans, key=len)))
    return [
        _together(list(alike))
        for _, alike in groupby(made, lambda reason: (reason.scheme, reason.text))
    ]


def _together(alike: Sequence[Reason]) -> Reason:
    """Make one of reasons with one text."""
    others = {reason.others for reason in alike}
    layers = _joined([reason.layers for reason in alike])
    return replace(alike[0], layers=layers, others=others.pop() if len(others) == 1 else "")


def _joined(of: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for names in of for name in names)


class _Words:
    """Says what switching some layers of a plan would cost."""

    def __init__(self, planned: Planned, switches: Switches) -> None:
        self.plan, self.prediction, self.switches = planned.plan, planned.prediction, switches
        self.limits = [planned.limits[rank] for rank in planned.plan.members]

    def of(
        self, part: tuple[str, ...], scheme: SchemeName, spans: Sequence[tuple[str, ...]]
    ) -> Reason:
        """Say what a step would take if the layers of *part* did not follow *scheme*.

        Args:
            spans: the sets of layers that may switch together: *part* first, and all last.
        """
        others = {other for name in part for other in self.switches.others(name)}
        cheapest = [
            self.switches.cheapest([spans[0], spans[-1]], other)
            for other in SCHEMES
            if other in others
        ]
        options = sorted((switch for switch in cheapest if switch is not None), key=self._order)
        if not options:
            return Reason(part, scheme, f"no choice: {self._why_none(part)}", "")
        alike = [switch.scheme for switch in options if self._is_alike(switch)]
        dearer = [switch for switch in options if not self._is_alike(switch)]
        clauses = [f"{_listed(alike)} would take as long"] if alike else []
        if dearer:
            dearest = self.switches.cheapest(spans, dearer[0].scheme)
            clauses.append(self._clause(dearest or dearer[0], part))
        briefly = [f"{switch.scheme} {self._briefly(switch)}" for switch in dearer[1:]]
        return Reason(part, scheme, "; ".join(clauses), "; ".join(briefly))

    def _clause(self, switch: Switch, part: tuple[str, ...]) -> str:
        where = "" if switch.layers == part else f" from {from_to(switch.layers)}"
        excess = self._excess(switch)
        if excess is not None:
            return f"{switch.scheme}{where} would need {excess}"
        return f"{switch.scheme}{where} would take {self._amount(switch)}{self._cause(switch)}"

    def _order(self, switch: Switch) -> tuple[bool, float]:
        return self._excess(switch) is not None, self._more(switch)

    def _why_none(self, part: tuple[str, ...]) -> str:
        node = self.switches.nodes[part[0]]
        if node.reason is not None:
            return node.reason
        if self.switches.graph.is_tied(node):
            return "it shares a parameter with another layer"
        return "nothing else is possible here, or was measured"

    def _more(self, switch: Switch) -> float:
        return switch.prediction.seconds - self.prediction.seconds

    def _is_alike(self, switch: Switch) -> bool:
        """Return whether a step would take as long."""
        little = abs(self._more(switch)) < SAME * self.prediction.seconds
        return little and self._excess(switch) is None

    def _amount(self, switch: Switch) -> str:
        more = self._more(switch)
        return f"{_seconds(abs(more))} {'more' if more >= 0 else 'less'}"

    def _briefly(self, switch: Switch) -> str:
        return "does not fit" if self._excess(switch) is not None else self._amount(switch)

    def _excess(self, switch: Switch) -> str | None:
        """Say whose memory the switch does not fit in; None if it fits."""
        for rank, need, limit in zip(
            self.plan.members, switch.prediction.memory.tolist(), self.limits, strict=True
        ):
            if limit and need > limit:
                return f"{bytes_text(need)} on rank {rank}, which may use {bytes_text(limit)}"
        return None

    def _cause(self, switch: Switch) -> str:
        """Say where most of the seconds go that a step would take more."""
        more = self._more(switch)
        if more < 0:
            little = -more < WORTH * self.prediction.seconds
            return ": within a prediction's error" if little else ""
        before, after = self.prediction, switch.prediction
        exchange = _exchange(after) - _exchange(before)
        waiting = _idle(after) - _idle(before)
        computing = more - exchange - waiting
        if exchange >= max(waiting, computing):
            return f": {self._moved(switch)}"
        if waiting >= computing:
            return f": ranks wait {_seconds(waiting)} longer"
        return f": {_seconds(computing)} more to compute"

    def _moved(self, switch: Switch) -> str:
        """Say what an exchange that takes longer moves."""
        ranks = len(self.plan.members)
        moved = switch.prediction.received - self.prediction.received
        if moved <= 0:
            return "exchanges take longer, though they move less"
        weights = 0
        if not SCHEMES[switch.scheme].cuts_outputs and not SCHEMES[switch.scheme].cuts_inputs:
            layers = [self.switches.nodes[name].call.whole_layer for name in switch.layers]
            parameters = [p for layer in layers for p in layer.parameters()]
            weights = sum(p.numel() * p.element_size() for p in parameters)
        if 2 * ranks * received_of_sum(weights, ranks) >= moved:
            return f"{bytes_text(weights)} of weights to sum"
        return f"{bytes_text(moved)} more to exchange"


def _exchange(prediction: Prediction) -> float:
    return sum(layer.exchange for layer in prediction.layers.values())


def _idle(prediction: Prediction) -> float:
    """Return the mean seconds for which a rank waits in a step."""
    return float(np.mean(sum(layer.idle for layer in prediction.layers.values())))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _seconds(seconds: float) -> str:
    return f"{digits(1e3 * seconds, 2)} ms" if seconds < 0.995 else f"{digits(seconds, 2)} s"
