"""The sliced model: the user's layers with this rank's share of them, and exchanges between."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from hetmp.cluster import AgreedError, Group
from hetmp.core.batch_layout import arrived
from hetmp.core.errors import HetmpError
from hetmp.exchange import EnteredParameters, leave, plain_tensors
from hetmp.ops import Seeds, filled
from hetmp.slicing.block import Part
from hetmp.slicing.forward import Forward
from hetmp.slicing.graph import PLAIN, ModelGraph
from hetmp.slicing.orders import Running
from hetmp.slicing.pickling import NotPickled
from hetmp.slicing.plan import Plan
from hetmp.slicing.rows import Input, held, whole_shape
from hetmp.slicing.runtime import Runtime
from hetmp.slicing.schedule import (
    BiasStep,
    CallStep,
    ExchangeStep,
    HookedStep,
    Program,
    ProgramStep,
    Schedule,
    WriteStep,
)
from hetmp.slicing.shares import label
from hetmp.slicing.state_loading import cut_whole, fitting_state
from hetmp.slicing.table import Table, tensors_of
from hetmp.slicing.tuning import Tuning

RESERVED = "hetmp"
"""The attribute of a sliced model under which everything lies that is not the user's."""


class SlicedModel(NotPickled, Part):
    """A module of which each rank holds a share; made by ``slice_model``.

    Calling it is collective over its group: every rank gives the whole batch, or its ``Rows`` of
    it, and gets the whole output. It holds the user's layers under the user's names, so
    ``state_dict()`` and ``named_parameters()`` keep their names; the class and the methods of the
    user's module are gone. All else is under ``model.hetmp``.
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
        # torch calls it also where the model is a part of another module.
        self.register_load_state_dict_post_hook(_take_loaded)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the user's module returns, whole, for a whole batch. Collective.

        Arguments are those of the user's module. Where the model takes its input by scheme
        ``batch``, a rank may give its ``hetmp.Rows`` of a tensor in the tensor's place.

        Raises:
            HetmpError: on every rank, where one has inputs that do not fit those that the model
                was sliced for, a part of the model in another mode than the model, or another
                pass to run than rank 0: a batch of another size, another mode or autocast, and
                (in the first passes and some later ones) other numbers in the batch.
        """
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise AgreedError(
                "torch.func (grad, vmap, jvp and the like) cannot transform a sliced model, whose "
                "exchanges they do not know: use torch.autograd.grad, which is exact"
            )
        runtime = self.hetmp
        mode = runtime.mode(self.training)
        inputs, seeds, running = runtime.start(self, mode, args, kwargs)
        if runtime.same_draws is not None:
            runtime.same_draws.check(self)
        with plain_tensors(), arrived(_length(inputs)):
            result = self._run(mode, running, inputs, seeds)
        if seeds is not None:
            seeds.close()
        return result

    def _run(
        self, mode: int, running: Running, inputs: Mapping[str, Input], seeds: Seeds | None
    ) -> Any:
        """Run a program on the inputs, by name; return its result, whole. Collective."""
        runtime, program = self.hetmp, running.program
        # The gradient of rows is this rank's own: there is nothing to sum.
        whole = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
        summed = dict(zip(whole, runtime.input_entry(*whole.values()), strict=True))
        taken = {**inputs, **summed}
        entered = self._entered(mode)
        values: dict[str, Any] = {name: taken[of] for name, of in program.entries.items()}
        device = next((held(x).device for x in inputs.values()), torch.device("cpu"))
        for name, path in program.attributes.items():
            values[name] = self._attribute(path, entered, device)
        Forward(self, runtime, mode, values, entered, seeds).run(running.sections)
        return filled(program.result, lambda name: _left(runtime.group, values[name]))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts as the user's module does, whose ``train`` may hold some."""
        super().train(mode)
        self.hetmp.hold_modes(self, mode)
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state_dict: this slicing's own, or a whole one, of which each rank takes its part.

        Not collective: every rank gives the whole. What wrappers put before the names
        (``module.``, ``_orig_mod.``, a common ``model.``) is taken off where they then fit, and
        the state may lie in a dict under a usual name (``state_dict``, ``model``).

        Args:
            state_dict: whole if any tensor of it does not have the shape of this rank's slice.
            strict: refuse names that are missing or unexpected.
            assign: take the values as they are, in their dtype and on their device.

        Returns:
            ``missing_keys`` and ``unexpected_keys``, as torch's own does.

        Raises:
            RuntimeError: torch's own, for names or shapes that do not fit. Shapes are whole ones.
            HetmpError: *assign* would part tensors that are tied.
        """
        return super().load_state_dict(
            fitting_state(state_dict, self.hetmp.table), strict=strict, assign=assign
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = super().__deepcopy__(memo)
        label(copied, self.hetmp.table, self.hetmp.group)
        return copied

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        label(self, self.hetmp.table, self.hetmp.group)  # a parameter may be new: from meta, say
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Before the layers below take theirs, also where the model is a part of another module.
        assign = local_metadata.get("assign_to_params_buffers", False)
        runtime, local = self.hetmp, tensors_of(self)
        error_msgs += cut_whole(
            state_dict, prefix, runtime.table, local, runtime.group.rank, assign=assign
        )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _entered(self, mode: int) -> EnteredParameters:
        """Return the replicated parameters, with gradients summed over the ranks."""
        bundles = [
            {name: self.get_parameter(name) for name in names}
            for names in self.hetmp.replicated(mode)
        ]
        return self.hetmp.parameter_entry.begin(bundles)

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
            lines += self._rows(number, self.hetmp.running(number).program)
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        return self.hetmp._repr_html_()

    def _rows(self, mode: int, program: Program) -> list[str]:
        rows = [self._row(mode, step) for step in program.flat]
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
        if isinstance(step, HookedStep):
            return step.path, "hooks", "", "hooks see whole values, backward Allreduce"
        if isinstance(step, WriteStep):
            return step.path, "hooks", "", "changed in place: also for hooks, backward Allreduce"
        assert isinstance(step, ExchangeStep)
        exchange = self.hetmp.exchange(mode, step)
        what = f"{exchange.collective}, backward {exchange.backward_collective}"
        return "", "exchange", _states(step.before, step.after), what


def _take_loaded(model: nn.Module, keys: Any) -> None:
    """Label parameters that were assigned, which are new, and trust what was loaded."""
    assert isinstance(model, SlicedModel)
    runtime = model.hetmp
    if model.home is not None:
        model.home.assigned()
    label(model, runtime.table, runtime.group)
    if runtime.same_draws is not None:
        runtime.same_draws.trust(model, keys.missing_keys)


def _length(inputs: Mapping[str, Input]) -> int:
    """Return the number of images of a batch: the length of the first input."""
    shape = next(map(whole_shape, inputs.values()), ())
    return shape[0] if shape else 0


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
