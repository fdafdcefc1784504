"""Which scheme each layer follows: dynamic programming over the operations in their order.

The state of the search is what later operations can see: how the values that are still needed
lie over the ranks, and what was already exchanged. Of two ways to the same state the cheaper
one stays, so that chains and blocks with branches are searched exactly, as far as costs add up
and no more than ``BEAM`` states are alive.
"""

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout
from hetmp.exchange import dual
from hetmp.ops import Mixing, SchemeName, references
from hetmp.planner.link_model import Links
from hetmp.planner.predict import exchange_seconds, step_cost
from hetmp.planner.profiling import (
    OPTIMIZER,
    THOUSANDTHS,
    link_name,
    step_work,
)
from hetmp.planner.tables import FORWARD, SAVED, Tables
from hetmp.slicing.graph import ModelGraph, Node, Trace
from hetmp.slicing.plan import Plan
from hetmp.slicing.schedule import CallStep, ExchangeStep, ProgramStep
from hetmp.slicing.scheduler import PlannedChoice, Scheduler

BEAM = 32


def choose_schemes(
    graph: ModelGraph,
    plan: Plan,
    tables: Tables,
    links: Links,
    batch_size: int,
    by_batch: Collection[str] = (),
    weights: Sequence[float] = (),
) -> dict[str, SchemeName]:
    """Return the schemes with the least predicted time for the counts of *plan*, by path.

    Args:
        graph: the model.
        plan: whose counts stay as they are.
        tables, links: measured times of the ranks and of the links between them.
        batch_size: images of a step.
        by_batch: the paths of the layers that may follow ``batch``.
        weights: the ranks' shares of a batch, for these.
    """
    trace = graph.training
    live = _last_uses(trace)
    cost = _Costs(graph, tables, links, batch_size)
    beam = [_Branch(graph, plan, by_batch, weights)]
    beam[0].begin(trace)
    for number, node in enumerate(trace.nodes):
        grown: dict[Any, _Branch] = {}
        for branch in beam:
            options = branch.options(node, tables)
            for i, scheme in enumerate(options):
                last = i == len(options) - 1
                after = branch if last else branch.fork()
                after.take(node, scheme)
                try:
                    after.visit(node)
                except HetmpError:  # images that lie on several ranks would be mixed here
                    continue
                after.spent += sum(map(cost.of, after.steps))
                after.steps.clear()
                key = after.frontier(live, number)
                if key not in grown or after.spent < grown[key].spent:
                    grown[key] = after
        beam = sorted(grown.values(), key=lambda branch: branch.spent)[:BEAM]
    for branch in beam:
        branch.end()
        branch.spent += sum(map(cost.of, branch.steps))
    return dict(min(beam, key=lambda branch: branch.spent).schemes)


def possible_schemes(
    graph: ModelGraph, node: Node, tables: Tables, by_batch: Collection[str]
) -> tuple[SchemeName, ...]:
    """Return the schemes that a layer can follow and that have measured times.

    Args:
        graph: the model.
        node: the layer, which mixes channels.
        tables: measured times of the ranks.
        by_batch: the paths of the layers that may follow ``batch``.
    """
    assert isinstance(node.rule, Mixing)
    layer, signature = node.call.whole_layer, node.call.signature
    batch = node.path in by_batch and tables.has(signature, "batch")
    if graph.is_tied(node):
        return ("whole", "batch") if batch else ("whole",)
    inputs = tables.has(signature, "inputs") and node.rule.input_channels(layer) is not None
    measured: dict[SchemeName, bool] = {"batch": batch, "inputs": inputs}
    return tuple(scheme for scheme in node.rule.schemes(layer) if measured.get(scheme, True))


class _Branch(Scheduler[Layout]):
    """A choice of schemes for the operations so far."""

    def __init__(
        self, graph: ModelGraph, plan: Plan, by_batch: Collection[str], weights: Sequence[float]
    ) -> None:
        super().__init__(graph, self)
        self.planned = PlannedChoice(plan)
        self.weights = tuple(weights)
        self.by_batch = by_batch
        self.schemes: dict[str, SchemeName] = {}
        self.spent = 0.0

    def scheme(self, node: Node) -> SchemeName:
        """Return the scheme chosen for a layer; ``filters`` for later layers."""
        return self.schemes.get(node.path, "filters")

    def options(self, node: Node, tables: Tables) -> tuple[SchemeName, ...]:
        """Return the schemes that an operation may follow here; one, without effect, if it mixes
        no channels."""
        if not isinstance(node.rule, Mixing) or node.reason is not None:
            return ("filters",)
        if node.path in self.schemes:
            return (self.schemes[node.path],)
        possible = possible_schemes(self.graph, node, tables, self.by_batch)
        some = any(self.planned.layout(node).counts)
        return tuple(scheme for scheme in possible if scheme != "inputs" or some)

    def take(self, node: Node, scheme: SchemeName) -> None:
        """Decide on a layer's scheme."""
        if isinstance(node.rule, Mixing) and node.reason is None:
            self.schemes[node.path] = scheme

    def fork(self) -> "_Branch":
        """Return a copy that may choose otherwise from here on."""
        other = copy.copy(self)
        other.choice = other
        for name in ("schemes", "first", "states", "exchanged", "current"):
            setattr(other, name, dict(getattr(self, name)))
        other.steps = []
        return other

    def layout(self, node: Node) -> Layout:
        """Return how the plan cuts a layer."""
        return self.planned.layout(node)

    def batch_weights(self, node: Node) -> tuple[float, ...]:
        """Return the ranks' shares of a batch, the same for all layers."""
        return self.weights

    def frontier(self, live: Mapping[str, int], number: int) -> Any:
        """Return all that operations after *number* depend on, as a key."""
        names = [name for name in self.current if live.get(name, -1) > number]
        seen: dict[str, set[Any]] = {}
        for value, target in self.exchanged:
            seen.setdefault(value, set()).add(target)
        key = []
        for name in names:
            value = self.current[name]
            key.append((name, self.states[value], frozenset(seen.get(value, ()))))
        for name in [name for name in self.current if live.get(name, -1) <= number]:
            del self.current[name]
        return tuple(key)


class _Costs:
    """Seconds that a step adds: those of the slowest rank, forward and backward.

    A layer that every rank holds whole is charged with the sum of its gradients, and with what the
    optimizer then does more than its share.
    """

    def __init__(self, graph: ModelGraph, tables: Tables, links: Links, batch_size: int) -> None:
        self.tables, self.links, self.batch_size = tables, links, batch_size
        self._known: dict[Any, float] = {}
        self._whole = _seconds_of_whole(graph, tables, links)

    def of(self, step: ProgramStep) -> float:
        """Return the seconds of one step."""
        if isinstance(step, CallStep):
            key = step_work(step, self.batch_size)
            if key not in self._known:
                work, kind, _ = key
                if kind == "batch" and not self.tables.has(work, kind):
                    return math.inf
                times = step_cost(self.tables, step, self.batch_size)[:, :SAVED]
                self._known[key] = float(times.sum(axis=1).max())
            return self._known[key] + self._of_whole(step)
        if isinstance(step, ExchangeStep):
            names = (
                link_name(step.before, step.after),
                link_name(dual(step.after), dual(step.before)),
            )
            return sum(exchange_seconds(self.links, step, name, self.batch_size) for name in names)
        return 0.0

    def _of_whole(self, step: CallStep) -> float:
        """Return what a layer that every rank holds whole costs more than one that is shared."""
        scheme = step.run.scheme
        if scheme is None or step.run.layer is None or scheme.cuts_outputs or scheme.cuts_inputs:
            return 0.0
        size = sum(p.numel() * p.element_size() for p in step.run.layer.parameters())
        return self._whole * size


def _seconds_of_whole(graph: ModelGraph, tables: Tables, links: Links) -> float:
    """Return the seconds per byte of a parameter that every rank holds, and not its share of it:
    of the sum of its gradient, and of the optimizer's step."""
    if tables.ranks == 1:
        return 0.0
    much = float(1 << 20)
    summing = (links.seconds("Allreduce", much, 0.0) - links.seconds("Allreduce", 0.0, 0.0)) / much
    all_of_it, nothing = (
        tables.at(OPTIMIZER, "channelwise", [part] * tables.ranks)[:, FORWARD]
        for part in (THOUSANDTHS, 0)
    )
    size = sum(p.numel() * p.element_size() for p in graph.skeleton.parameters())
    stepping = float((all_of_it - nothing).max()) / max(1, size)
    return summing + stepping * (1 - 1 / tables.ranks)


def _last_uses(trace: Trace) -> dict[str, int]:
    """Return the number of the last operation that takes each value; past the end for results."""
    last = {name: number for number, node in enumerate(trace.nodes) for name in node.call.values}
    return last | dict.fromkeys(references(trace.result), len(trace.nodes))
