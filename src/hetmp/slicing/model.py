"""The sliced model: the user's layers with this rank's share of them, and exchanges between."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetmp.comm import Group
from hetmp.errors import HetmpError
from hetmp.exchange import Entry as EntryExchange
from hetmp.exchange import Exchange, leave
from hetmp.graph import ModelGraph
from hetmp.ops import KeyedDropout, add_bias
from hetmp.plan import Plan
from hetmp.schedule import BiasStep, ExchangeStep, LayerStep, Schedule, Step
from hetmp.slicing.same_batch import SameBatch
from hetmp.slicing.table import Table
from hetmp.state import FULL

RESERVED = "hetmp"
"""The attribute of a sliced model under which everything lies that is not the user's."""


class SlicedModel(nn.Module):
    """A module of which this rank holds a share; made by ``slice_model``.

    Calling it is collective over its group: every rank gives the whole batch and gets the
    whole output. It holds the user's layers under the user's names, so ``state_dict()`` and
    ``named_parameters()`` keep their names; the class and the methods of the user's module
    are gone. All else is under ``model.hetmp``.
    """

    def __init__(
        self, graph: ModelGraph, plan: Plan, schedule: Schedule, table: Table, group: Group
    ) -> None:
        super().__init__()
        self.hetmp = Runtime(graph, plan, schedule, table, group)

    def forward(self, x: Tensor) -> Tensor:
        """The model's whole output for a whole batch.

        Raises:
            HetmpError: on every rank, for an input of the wrong number of dimensions, or (in
                the first steps) for ranks that were given different batches.
        """
        runtime = self.hetmp
        runtime.check(x)
        (x,) = runtime.input_entry(x)
        names = runtime.replicated
        entered = dict(
            zip(
                names,
                runtime.parameter_entry(*(self.get_parameter(name) for name in names)),
                strict=True,
            )
        )
        runtime.draw_dropout_key(self)
        values = {runtime.schedule.entry: x}
        for step, freed in runtime.program:
            values[step.name] = self._run(step, values[step.source], entered)
            for name in freed:
                del values[name]
        return leave(runtime.group, values[runtime.schedule.result])

    def _run(self, step: Step, x: Tensor, entered: dict[str, Tensor]) -> Tensor:
        if isinstance(step, ExchangeStep):
            exchanged: Tensor = self.hetmp.exchange(step)(x)
            return exchanged
        if isinstance(step, BiasStep):
            bias = entered.get(step.parameter)
            if bias is None:
                bias = self.get_parameter(step.parameter)
            return add_bias(x, bias, step.axis)
        assert isinstance(step, LayerStep)
        layer = self.hetmp.layer(self, step)
        own = {
            name: entered[f"{step.node.path}.{name}"]
            for name in layer._parameters
            if f"{step.node.path}.{name}" in entered
        }
        given: Tensor = functional_call(layer, own, (x,)) if own else layer(x)
        return given

    def __repr__(self) -> str:
        """The user's layers, the states between them and the exchanges, in order."""
        group = self.hetmp.group
        lines = [f"SlicedModel, rank {group.rank} of {group.size}:"]
        rows = [self._row(step) for step in self.hetmp.schedule.steps]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines += [
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + f"  {row[3]}"
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _row(self, step: Step) -> tuple[str, str, str, str]:
        """(path, scheme, states, what) of a step."""
        states = str(step.after)
        if step.before != step.after:
            states = f"{step.before} -> {step.after}"
        if isinstance(step, LayerStep):
            return step.node.path, step.scheme or "", states, repr(step.node.layer)
        if isinstance(step, BiasStep):
            return step.parameter.rpartition(".")[0], "", states, "add bias"
        assert isinstance(step, ExchangeStep)
        exchange = self.hetmp.exchange(step)
        what = f"{exchange.collective}, backward {exchange.backward_collective}"
        return "", "exchange", states, what


class Runtime(nn.Module):
    """What a sliced model needs besides the user's layers.

    Attributes:
        group, plan, schedule, table: see their classes.
        exchanges: the exchanges between layers, in order; each has its counters.
        repeated: layers without parameters that run again, by the name of the step.
        input_entry, parameter_entry: the exchanges at the entry, which sum gradients.
    """

    def __init__(
        self, graph: ModelGraph, plan: Plan, schedule: Schedule, table: Table, group: Group
    ) -> None:
        super().__init__()
        self.group, self.plan, self.schedule, self.table = group, plan, schedule, table
        self.dims = graph.dims
        steps = [step for step in schedule.steps if isinstance(step, ExchangeStep)]
        self.exchanges = nn.ModuleList(Exchange(group, s.before, s.after) for s in steps)
        self.repeated = nn.ModuleDict()
        self._number = {step.name: number for number, step in enumerate(steps)}
        self.input_entry, self.parameter_entry = EntryExchange(group), EntryExchange(group)
        self.replicated = _replicated(schedule, table)
        self.program = _program(schedule)
        self.same_batch = SameBatch(group)

    def layer(self, model: nn.Module, step: LayerStep) -> nn.Module:
        """The layer of *model* that a step runs."""
        if step.name in self.repeated:
            return self.repeated[step.name]
        return model.get_submodule(step.node.path)

    def exchange(self, step: ExchangeStep) -> Exchange:
        """The exchange that a step runs."""
        exchange = self.exchanges[self._number[step.name]]
        assert isinstance(exchange, Exchange)
        return exchange

    def check(self, x: Tensor) -> None:
        """Refuse an input that cannot be right, on every rank at once."""
        self.same_batch.check(x)
        if self.dims is not None and x.dim() != self.dims:
            raise HetmpError(
                f"the model takes batches of {self.dims} dimensions, got shape {tuple(x.shape)}: "
                "give the batch axis also for one sample, or an example_input to slice_model"
            )

    def exchange_seconds(self) -> list[float]:
        """Seconds of every exchange so far on this rank, forward and backward apart."""
        seconds = []
        for exchange in self.exchanges:
            assert isinstance(exchange, Exchange)
            seconds += [exchange.forward_counter.seconds, exchange.backward_counter.seconds]
        entries = (self.input_entry, self.parameter_entry)
        return seconds + [entry.backward_counter.seconds for entry in entries]

    def draw_dropout_key(self, model: nn.Module) -> None:
        """Give every dropout layer rank 0's key for this pass, where one is active."""
        layers = [layer for layer in model.modules() if isinstance(layer, KeyedDropout)]
        if not any(layer.active for layer in layers):
            return
        drawn = torch.randint(0, 2**63 - 1, (1,)).numpy().astype(np.int64)
        key = int(self.group.broadcast(drawn)[0])
        for number, layer in enumerate(layers):
            layer.key, layer.number = key, number


def _replicated(schedule: Schedule, table: Table) -> tuple[str, ...]:
    """The parameters that every rank holds alike and that the forward pass uses."""
    names: list[str] = []
    for step in schedule.steps:
        if isinstance(step, LayerStep):
            names += [f"{step.node.path}.{name}" for name in step.node.layer._parameters]
    return tuple(n for n in dict.fromkeys(names) if n in table and table[n].state == FULL)


def _program(schedule: Schedule) -> tuple[tuple[Step, tuple[str, ...]], ...]:
    """Every step with the values that nothing after it takes."""
    last = {step.source: i for i, step in enumerate(schedule.steps)}
    last[schedule.result] = len(schedule.steps)
    freed: dict[int, list[str]] = {}
    for name, i in last.items():
        freed.setdefault(i, []).append(name)
    return tuple((step, tuple(freed.get(i, ()))) for i, step in enumerate(schedule.steps))
