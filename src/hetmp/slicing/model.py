"""The sliced model: the user's layers with this rank's share of them, and exchanges between."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.exchange import leave, plain_tensors
from hetmp.ops import filled
from hetmp.slicing.forward import Forward
from hetmp.slicing.graph import PLAIN, ModelGraph
from hetmp.slicing.plan import Plan
from hetmp.slicing.runtime import Runtime
from hetmp.slicing.schedule import BiasStep, CallStep, ExchangeStep, Program, ProgramStep, Schedule
from hetmp.slicing.shares import mark
from hetmp.slicing.table import Table
from hetmp.slicing.tuning import Tuning

RESERVED = "hetmp"
"""The attribute of a sliced model under which everything lies that is not the user's."""


class SlicedModel(nn.Module):
    """A module of which each rank holds a share; made by ``slice_model``.

    Calling it is collective over its group: every rank gives the whole batch and gets the
    whole output. It holds the user's layers under the user's names, so ``state_dict()`` and
    ``named_parameters()`` keep their names; the class and the methods of the user's module
    are gone. All else is under ``model.hetmp``.
    """

    def __init__(
        self,
        graph: ModelGraph,
        plan: Plan,
        schedule: Schedule,
        table: Table,
        group: Group,
        tuning: Tuning,
    ) -> None:
        super().__init__()
        self.hetmp = Runtime(graph, plan, schedule, table, group, tuning)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the user's module returns, whole, for a whole batch. Collective.

        Raises:
            HetmpError: on every rank, for inputs that do not fit those that the model was sliced
                for, a part of the model in another mode than the model, or (in the first steps)
                different batches or autocasts on the ranks.
        """
        with plain_tensors():
            return self._forward(args, kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        runtime = self.hetmp
        tensors = runtime.inputs.bind(args, kwargs)
        runtime.check(tensors)
        if runtime.same_draws is not None:
            runtime.same_draws.check(self)
        runtime.check_modes(self)
        mode = runtime.mode(self.training)
        program = runtime.schedule.programs[mode]
        tensors = dict(zip(tensors, runtime.input_entry(*tensors.values()), strict=True))
        entered = self._entered(mode)
        values = {name: tensors[input_name] for name, input_name in program.entries.items()}
        device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
        for name, path in program.attributes.items():
            values[name] = self._attribute(path, entered, device)
        seeds = runtime.draw_key(self, mode, device)
        Forward(self, runtime, mode, values, entered, seeds).run()
        if seeds is not None:
            seeds.close()
        return filled(program.result, lambda name: _left(runtime.group, values[name]))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts as the user's module does, whose ``train`` may hold some."""
        super().train(mode)
        self.hetmp.hold_modes(self, mode)
        return self

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # as a deep copy, whose parameters are new
        mark(self, self.hetmp.table, self.hetmp.group)

    def _entered(self, mode: int) -> dict[str, Tensor]:
        """Return the replicated parameters, with gradients summed over the ranks."""
        names = self.hetmp.replicated(mode)
        parameters = (self.get_parameter(name) for name in names)
        return dict(zip(names, self.hetmp.parameter_entry(*parameters), strict=True))

    def _attribute(self, path: str, entered: Mapping[str, Tensor], device: torch.device) -> Any:
        graph = self.hetmp.graph
        if path in graph.constants:
            return graph.constants[path].to(device)
        name = graph.aliases.get(path, path)
        if name in entered:
            return entered[name]
        above, _, last = name.rpartition(".")
        return getattr(self.get_submodule(above), last)

    def __repr__(self) -> str:
        """Show the user's layers, the states between them and the exchanges, in order."""
        group = self.hetmp.group
        lines = [f"SlicedModel, rank {group.rank} of {group.size}:"]
        schedule = self.hetmp.schedule
        for number, program in enumerate(schedule.programs):
            if len(schedule.programs) > 1:
                modes = (str(mode) for mode, own in schedule.modes.items() if own is program)
                lines.append(f" in {' and '.join(modes)}:")
            lines += self._rows(number, program)
        return "\n".join(line.rstrip() for line in lines)

    def _rows(self, mode: int, program: Program) -> list[str]:
        rows = [self._row(mode, step) for step in program.steps]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        return [
            "  "
            + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            + f"  {row[3]}"
            for row in rows
        ]

    def _row(self, mode: int, step: ProgramStep) -> tuple[str, str, str, str]:
        """Return a step as (path, scheme, states, description)."""
        if isinstance(step, CallStep):
            layer = step.run.layer
            what = repr(layer) if layer is not None else step.run.call.title
            what += f" ({step.scope})" if step.scope != PLAIN else ""
            if step.node.reason is not None:
                what += f" (whole: {step.node.reason})"
            return (
                step.node.path,
                step.run.scheme.name if step.run.scheme else "",
                _states(step.before, step.after),
                " ".join(what.split()),
            )
        if isinstance(step, BiasStep):
            return step.parameter.rpartition(".")[0], "", str(step.after), "add bias"
        assert isinstance(step, ExchangeStep)
        exchange = self.hetmp.exchange(mode, step)
        what = f"{exchange.collective}, backward {exchange.backward_collective}"
        return "", "exchange", _states(step.before, step.after), what


def _states(before: Any, after: Any) -> str:
    shown = [
        " and ".join(map(str, state)) if isinstance(state, tuple) else str(state)
        for state in (before, after)
    ]
    return shown[0] if shown[0] == shown[1] else " -> ".join(shown)


def _left(group: Group, value: Any) -> Any:
    """Return a result as it is handed to the user: see ``leave``."""
    if isinstance(value, Tensor):
        return leave(group, value)
    if isinstance(value, tuple | list):
        left = [_left(group, item) for item in value]
        return type(value)(*left) if hasattr(value, "_fields") else type(value)(left)
    if type(value) in (dict, OrderedDict):
        return type(value)((name, _left(group, item)) for name, item in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: _left(group, item) for name, item in items.items()})
    if value is None or isinstance(value, bool | int | float | complex | str | torch.Size):
        return value
    raise HetmpError(
        f"the module returns a {type(value).__name__}, whose tensors hetmp cannot find: return a "
        "tensor, tuple, list, dict or dataclass"
    )
