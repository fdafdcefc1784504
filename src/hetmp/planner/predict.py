"""Predict the time of a training step by running every rank's clock through the program.

A rank that is early waits: an exchange ends when the last rank is there and the bytes have moved.
On the way back a rank computes parameter gradients while it waits for others to arrive. Gradients
of parameters that every rank holds whole are summed bundle by bundle. As much of that as was
measured to be hidden by work goes on beside the backward pass, delayed by exchanges; the rest is
waited for at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property, partial

import numpy as np

from hetmp.core.state import Sliced, State, at_arrival, is_batch
from hetmp.exchange import dual, received_of_sum
from hetmp.ops import Statistics
from hetmp.planner.link_model import Links
from hetmp.planner.profiling import OPTIMIZER, THOUSANDTHS, link_name, step_work
from hetmp.planner.tables import BACKWARD, FORWARD, PARAMETERS, SAVED, Array, Tables
from hetmp.slicing import Table, owners
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.orders import bundles, entered_parameters
from hetmp.slicing.plan import Backward
from hetmp.slicing.schedule import (
    CallStep,
    ExchangeStep,
    Program,
    ProgramStep,
    Schedule,
    takers,
)
from hetmp.slicing.segments import regathered, segments
from hetmp.slicing.step_memory import (
    MemoryOptions,
    held_bytes,
    needing_gradients,
    step_memory,
)


@dataclass
class LayerPrediction:
    """Predicted times of a mixing layer with the channel-wise work behind it.

    Attributes:
        name: the layer's path; empty for the work before the first.
        compute: seconds of each rank, forward and backward.
        exchange: seconds of the exchanges in front of it.
        idle: seconds that each rank waits for others there.
    """

    name: str
    compute: Array
    exchange: float
    idle: Array


@dataclass
class Prediction:
    """Predicted time, memory and traffic of a training step.

    Attributes:
        seconds: time of the step.
        layers: the layers' times by path, in order.
        received: bytes that all ranks receive together.
        memory_of: returns ``memory``, which takes as long as all else, and which a search that has
            no limit of it does not need.
    """

    seconds: float
    layers: Mapping[str, LayerPrediction]
    received: float
    memory_of: Callable[[], Array] = field(repr=False, compare=False)

    @cached_property
    def memory(self) -> Array:
        """(ranks,) bytes: the most that each rank holds: see ``slicing/step_memory.py``."""
        return self.memory_of()


@dataclass
class _Clock:
    tables: Tables
    now: Array = field(init=False)
    summed: float = 0.0
    """When what is hidden of the sums of gradients that were begun is over."""
    unhidden: float = 0.0
    """Seconds of those sums that are waited for in any case."""
    layers: dict[str, LayerPrediction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = np.zeros(self.tables.ranks)

    def layer(self, name: str) -> LayerPrediction:
        if name not in self.layers:
            ranks = self.tables.ranks
            self.layers[name] = LayerPrediction(name, np.zeros(ranks), 0.0, np.zeros(ranks))
        return self.layers[name]

    def compute(self, name: str, seconds: Array) -> None:
        self.now = self.now + seconds
        self.layer(name).compute += seconds

    def exchange(self, name: str, seconds: float, meanwhile: Array | None = None) -> None:
        """Advance all ranks to the end of an exchange; each first computes *meanwhile*.

        Args:
            name: of the layer that it is charged to.
            seconds: of the exchange, once all ranks are there.
            meanwhile: (ranks,) seconds that each rank computes before it waits; None for none.
        """
        free = self.now if meanwhile is None else self.now + meanwhile
        all_there = float(self.now.max())
        after = np.maximum(free, all_there)
        self.layer(name).idle += after - free
        self.layer(name).exchange += seconds
        if meanwhile is not None:
            self.layer(name).compute += meanwhile
        self.now = after + seconds
        if self.summed > all_there:  # they share the network
            self.summed += seconds

    def begin_sum(self, seconds: float, hidden: float) -> None:
        """Begin a sum of gradients, a part of it *hidden* by work, behind those before it."""
        self.summed = max(self.summed, float(self.now.max())) + hidden * seconds
        self.unhidden += (1 - hidden) * seconds

    def end_sums(self, name: str) -> None:
        """Advance all ranks to the end of the sums; what is waited for is charged to a layer."""
        over = max(self.summed, float(self.now.max())) + self.unhidden
        self.layer(name).exchange += over - float(self.now.max())
        self.layer(name).idle += self.now.max() - self.now
        self.now = np.full(self.tables.ranks, over)


def predict(
    graph: ModelGraph,
    schedule: Schedule,
    table: Table,
    tables: Tables,
    links: Links,
    batch_size: int,
    memory: MemoryOptions | None = None,
    backward: Mapping[str, Backward] | None = None,
) -> Prediction:
    """Predict a training step under a schedule.

    Args:
        graph: the model.
        table: the sliced tensors of the schedule.
        tables, links: measured times of the ranks that take part.
        batch_size: images of the step.
        memory: what decides how much memory a step takes; the defaults if None.
        backward: what the backward pass has of each layer, by path; ``keep`` of all if None.

    Raises:
        HetmpError: the profile does not know an operation of the model.
    """
    walk = _Walk(graph, schedule.training, table, tables, links, batch_size, backward or {})
    for step in schedule.training.steps:
        walk.forward(step)
    clock = walk.clock
    clock.now = clock.now + tables.rest
    for step in reversed(schedule.training.steps):
        walk.backward(step)
    walk.end()
    held = held_bytes(table, tables.ranks)
    parts = np.round(THOUSANDTHS * held / max(1, parameter_bytes(table))).astype(np.int64)
    clock.now = clock.now + tables.at(OPTIMIZER, "channelwise", parts.tolist())[:, FORWARD]
    most = partial(walk.memory, memory or MemoryOptions())
    return Prediction(float(clock.now.max()), clock.layers, walk.received, most)


@dataclass
class _Walk:
    """Every rank's clock on its way through a program, forward and then backward.

    Args:
        choices: what the backward pass has of each layer, by path; ``keep`` of those not named.

    Attributes:
        clock: the ranks' clocks.
        received: bytes that all ranks have received together.
    """

    graph: ModelGraph
    program: Program
    table: Table
    tables: Tables
    links: Links
    images: int
    choices: InitVar[Mapping[str, Backward]]
    clock: _Clock = field(init=False)
    received: float = 0.0

    def __post_init__(self, choices: Mapping[str, Backward]) -> None:
        program, tables = self.program, self.tables
        self.clock = _Clock(tables)
        self.owner = owners(program)
        calls = [step for step in program.steps if isinstance(step, CallStep)]
        self.costs = {step.name: step_cost(tables, step, self.images) for step in calls}
        self.norms = {step.name for step in calls if _gathers_statistics(step)}
        self.gathering = self.links.seconds("Allreduce", 0.0, 0.0) if self.norms else 0.0
        self.needing = needing_gradients(self.graph, program)
        self.postponed = {
            taker.name
            for step in program.steps
            if step.name in self.needing
            for taker in takers(program, step)[0]
        }
        by_layer = {node.path: choices.get(node.path, "keep") for node in self.graph.mixing()}
        own = segments(program, self.graph.training, by_layer)
        self.segments = [segment for segment in own if segment.reason is None]
        self.again = {segment.steps[-1].name: segment for segment in self.segments}
        self.regathered = regathered(program, choices) if tables.ranks > 1 else frozenset()
        self.bundles = self._bundles() if tables.ranks > 1 else {}

    def forward(self, step: ProgramStep) -> None:
        """Go through a step, forward."""
        if isinstance(step, CallStep):
            self.clock.compute(self.owner[step.name], self.costs[step.name][:, FORWARD])
            if step.name in self.norms:
                self.clock.exchange(self.owner[step.name], self.gathering)
        elif isinstance(step, ExchangeStep):
            if self.tables.ranks > 1:
                self.clock.compute(self.owner[step.name], self.tables.handling)
            self._exchange(step)
            self.received += self.images * step.received_by_all(self.tables.ranks)

    def backward(self, step: ProgramStep) -> None:
        """Go through a step, backward, and first forward through what is computed again."""
        segment = self.again.get(step.name)
        if segment is not None:
            for again in (*segment.gathers, *segment.steps):
                self._once_more(again)
        if isinstance(step, CallStep):
            cost = self.costs[step.name]
            seconds = cost[:, BACKWARD]
            if step.name in self.norms:
                self.clock.exchange(self.owner[step.name], self.gathering)
            if step.name not in self.postponed:
                seconds = seconds + cost[:, PARAMETERS]
            self.clock.compute(self.owner[step.name], seconds)
        elif isinstance(step, ExchangeStep) and step.name in self.needing:
            if step.name in self.regathered:
                self._once_more(step)
            name = link_name(dual(step.after), dual(step.before))
            layers, _ = takers(self.program, step)
            none = np.zeros(self.tables.ranks)
            meanwhile = sum((self.costs[layer.name][:, PARAMETERS] for layer in layers), none)
            if name == "-":
                self.clock.compute(self.owner[step.name], meanwhile)
            else:
                moving = exchange_seconds(self.links, step, name, self.images)
                self.clock.exchange(self.owner[step.name], moving, meanwhile)
        if step.name in self.bundles:
            summing = self.links.seconds("Allreduce", self.bundles[step.name], 0.0)
            self.clock.begin_sum(summing, self.links.hidden)

    def end(self) -> None:
        """Wait for the sums of gradients, behind everything: charged to the layer in front."""
        if not self.bundles:
            return
        self.clock.end_sums(next(iter(self.clock.layers)))
        ranks = self.tables.ranks
        self.received += ranks * received_of_sum(sum(self.bundles.values()), ranks)

    def _bundles(self) -> dict[str, int]:
        """Return the bytes of gradients whose sums begin behind a step's backward pass."""
        trained = {name for name, p in self.graph.skeleton.named_parameters() if p.requires_grad}
        bundle_of = {
            name: number
            for number, names in enumerate(bundles(self.program, self.graph, self.table))
            for name in names
        }
        first = self.program.steps[0].name
        begins = dict.fromkeys(bundle_of.values(), first)  # what no layer enters waits till the end
        for step in reversed(self.program.steps):
            entered = entered_parameters(step, self.graph, self.table).values()
            begins |= {bundle_of[name]: step.name for name in entered}
        sizes: dict[str, int] = {}
        for name, number in bundle_of.items():
            if name in trained:
                entry, at = self.table[name], begins[number]
                sizes[at] = sizes.get(at, 0) + entry.shape.numel() * entry.dtype.itemsize
        return sizes

    def memory(self, options: MemoryOptions) -> Array:
        """Return (ranks,) bytes: the most that each rank holds in the step."""
        saved = {name: cost[:, SAVED] for name, cost in self.costs.items()}
        most = step_memory(
            self.graph, self.program, self.table, saved, self.images, options,
            self.segments, self.regathered,
        )  # fmt: skip
        return most + _workspace(self.tables, self.program, self.images)

    def _once_more(self, step: ProgramStep) -> None:
        """Go through a step that the backward pass repeats: statistics are those from before."""
        if isinstance(step, CallStep):
            self.clock.compute(self.owner[step.name], self.costs[step.name][:, FORWARD])
        elif isinstance(step, ExchangeStep):
            self._exchange(step)
            ranks = self.tables.ranks
            self.received += sum(
                step.received_of_batch(self.images, rank, ranks)[0] for rank in range(ranks)
            )

    def _exchange(self, step: ExchangeStep) -> None:
        """Go through an exchange, forward."""
        name = link_name(step.before, step.after)
        if name != "-":
            seconds = exchange_seconds(self.links, step, name, self.images)
            self.clock.exchange(self.owner[step.name], seconds)


def _workspace(tables: Tables, program: Program, images: int) -> Array:
    """Return (ranks,) bytes that each rank needs for a while for its shares of the layers."""
    shares: dict[str, Array] = {}
    lengths: dict[str, int] = {}
    for step in program.steps:
        if not isinstance(step, CallStep) or step.run.scheme is None:
            continue
        kind, state = "filters", step.run.target
        if step.run.scheme.cuts_batch:
            kind = "batch"
        elif step.run.scheme.cuts_inputs:
            state = step.run.source
        if not isinstance(state, Sliced):
            continue
        state = at_arrival(state, images)
        if isinstance(state, Sliced):
            counts = np.array(state.layout.counts, dtype=np.float64)
            shares[kind] = shares.get(kind, np.zeros(tables.ranks)) + counts
            lengths[kind] = lengths.get(kind, 0) + state.layout.total
    most = np.zeros(tables.ranks)
    for kind, counts in shares.items():
        most = np.maximum(most, tables.workspace(kind, counts / max(1, lengths[kind])))
    return most


def parameter_bytes(table: Table) -> int:
    """Return the bytes of the model's parameters."""
    return sum(
        entry.shape.numel() * entry.dtype.itemsize
        for entry in table.values()
        if entry.parameter and entry.alias_of is None
    )


def _gathers_statistics(step: ProgramStep) -> bool:
    """Return whether a step is a batch norm on slices of the batch."""
    if not isinstance(step, CallStep) or not is_batch(step.run.source):
        return False
    statistics = Statistics.of(step.node.call)
    return statistics is not None and not statistics.per_image


def step_cost(tables: Tables, step: CallStep, images: int) -> Array:
    """Return (ranks, 4): seconds and saved bytes of a step on every rank, with so many *images*."""
    work, kind, state = step_work(step, images)
    if state is None:
        return tables.at(work, kind, None)
    total, counts = tables.total(work, kind), np.array(state.layout.counts)
    if kind == "batch" and state.layout.total != total:  # an axis with the batch and more in it
        counts = np.round(counts * (total / max(1, state.layout.total))).astype(np.int64)
    return tables.at(work, kind, counts.tolist())


def exchange_seconds(links: Links, step: ExchangeStep, name: str, batch_size: int) -> float:
    """Return the seconds of the collective *name* for the value that *step* exchanges.

    *links* has the measured times, by collective, bytes and largest share; the value is that of
    *batch_size* images.
    """
    size = step.value.image_bytes * batch_size
    largest = max(_largest(state, batch_size) for state in (step.before, step.after))
    return links.seconds(name, size, largest)


def _largest(state: State, images: int) -> float:
    state = at_arrival(state, images)
    if not isinstance(state, Sliced) or state.layout.total == 0:
        return 0.0
    return max(state.layout.counts) / state.layout.total
