"""Predict the time of a training step by running every rank's clock through the program.

A rank that is early waits: an exchange ends when the last rank is there and the bytes have moved.
On the way back a rank computes parameter gradients while it waits for others to arrive. Gradients
of parameters that every rank holds whole are summed at the end: that some of it goes on beside the
backward pass is not counted on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hetmp.core.state import Sliced, State, at_arrival, is_batch
from hetmp.exchange import dual, received_of_sum
from hetmp.ops import Statistics
from hetmp.planner.link_model import Links
from hetmp.planner.profiling import OPTIMIZER, THOUSANDTHS, link_name, step_work
from hetmp.planner.tables import BACKWARD, FORWARD, PARAMETERS, SAVED, Array, Tables
from hetmp.slicing import Table, owners
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.schedule import (
    CallStep,
    ExchangeStep,
    Program,
    ProgramStep,
    Schedule,
    takers,
)
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
        memory: (ranks,) bytes: the most that each rank holds: see ``slicing/step_memory.py``.
        received: bytes that all ranks receive together.
    """

    seconds: float
    layers: Mapping[str, LayerPrediction]
    memory: Array
    received: float


@dataclass
class _Clock:
    tables: Tables
    now: Array = field(init=False)
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


def predict(
    graph: ModelGraph,
    schedule: Schedule,
    table: Table,
    tables: Tables,
    links: Links,
    batch_size: int,
    memory: MemoryOptions | None = None,
) -> Prediction:
    """Predict a training step under a schedule.

    Args:
        graph: the model.
        table: the sliced tensors of the schedule.
        tables, links: measured times of the ranks that take part.
        batch_size: images of the step.
        memory: what decides how much memory a step takes; the defaults if None.

    Raises:
        HetmpError: the profile does not know an operation of the model.
    """
    program = schedule.training
    clock = _Clock(tables)
    owner = owners(program)
    costs = {
        step.name: step_cost(tables, step, batch_size)
        for step in program.steps
        if isinstance(step, CallStep)
    }
    norms = {step.name for step in program.steps if _gathers_statistics(step)}
    gathering = links.seconds("Allreduce", 0.0, 0.0) if norms else 0.0
    received = 0.0
    for step in program.steps:
        if isinstance(step, CallStep):
            clock.compute(owner[step.name], costs[step.name][:, FORWARD])
            if step.name in norms:
                clock.exchange(owner[step.name], gathering)
        elif isinstance(step, ExchangeStep):
            if tables.ranks > 1:
                clock.compute(owner[step.name], tables.handling)
            name = link_name(step.before, step.after)
            if name != "-":
                clock.exchange(owner[step.name], exchange_seconds(links, step, name, batch_size))
            received += batch_size * step.received_by_all(tables.ranks)
    clock.now = clock.now + tables.rest
    back = needing_gradients(graph, program)
    postponed = {
        taker.name
        for step in program.steps
        if step.name in back
        for taker in takers(program, step)[0]
    }
    for step in reversed(program.steps):
        if isinstance(step, CallStep):
            cost = costs[step.name]
            seconds = cost[:, BACKWARD]
            if step.name in norms:
                clock.exchange(owner[step.name], gathering)
            if step.name not in postponed:
                seconds = seconds + cost[:, PARAMETERS]
            clock.compute(owner[step.name], seconds)
        elif isinstance(step, ExchangeStep) and step.name in back:
            name = link_name(dual(step.after), dual(step.before))
            meanwhile = sum(
                (costs[taker.name][:, PARAMETERS] for taker in takers(program, step)[0]),
                start=np.zeros(tables.ranks),
            )
            if name == "-":
                clock.compute(owner[step.name], meanwhile)
            else:
                clock.exchange(
                    owner[step.name], exchange_seconds(links, step, name, batch_size), meanwhile
                )
    summed = _summed_bytes(graph, table)
    if tables.ranks > 1 and summed:
        # They are waited for behind everything: charged to the layer in front.
        clock.exchange(next(iter(clock.layers)), links.seconds("Allreduce", summed, 0.0))
        received += tables.ranks * received_of_sum(summed, tables.ranks)
    held = held_bytes(table, tables.ranks)
    parts = np.round(THOUSANDTHS * held / max(1, parameter_bytes(table))).astype(np.int64)
    clock.now = clock.now + tables.at(OPTIMIZER, "channelwise", parts.tolist())[:, FORWARD]
    saved = {name: cost[:, SAVED] for name, cost in costs.items()}
    options = memory or MemoryOptions()
    most = step_memory(graph, program, table, saved, batch_size, options)
    most = most + _workspace(tables, program, batch_size)
    return Prediction(float(clock.now.max()), clock.layers, most, received)


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


def _summed_bytes(graph: ModelGraph, table: Table) -> int:
    """Return the bytes of the gradients that are summed over the ranks at the end of a step."""
    trained = {name for name, p in graph.skeleton.named_parameters() if p.requires_grad}
    return sum(
        entry.shape.numel() * entry.dtype.itemsize
        for name, entry in table.items()
        if name in trained and entry.alias_of is None and not isinstance(entry.state, Sliced)
    )


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
