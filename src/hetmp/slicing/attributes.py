"""Attributes that users set on a sliced model: read again, or refused by name.

What the user's ``forward`` reads of its attributes became part of the program. So where one is
set, a copy of the module gets it and is read again. The program that comes of it takes the place
of the old one if every value lies as it did; else the attribute is refused, and keeps its value.
"""

import copy
import inspect
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp.cluster import AgreedError
from hetmp.core.errors import HetmpError
from hetmp.ops import is_plain_value, own_forward, rule_for, settings
from hetmp.slicing.block import Part
from hetmp.slicing.graph import ModelGraph, operations_mark, read_graph
from hetmp.slicing.model import RESERVED, SlicedModel
from hetmp.slicing.orders import step_key
from hetmp.slicing.schedule import CallStep, ExchangeStep, ProgramStep, Schedule
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.table import make_table

Name = tuple[str, str]
"""(path of the part, name of the attribute)."""

_MISSING = object()


@dataclass
class _Layer:
    """A layer, as it was when it was last looked at.

    Attributes:
        settings: its plain attributes, by name.
        whole: the names of those that are the whole layer's; others are this rank's share.
        parameters: its own, by name.
        forward: what it runs in the place of its class's, or None.
    """

    path: str
    layer: nn.Module
    settings: dict[str, object]
    whole: frozenset[str]
    parameters: dict[str, nn.Parameter | None]
    forward: object


class Attributes:
    """The attributes of the module that a model was made of.

    Args:
        model: the sliced model, with all its layers.
        original: a copy of the user's module on the meta device, as it was before it was read.
        example_input: what it was read with.
        device: where this rank computes.
    """

    def __init__(
        self,
        model: SlicedModel,
        original: nn.Module,
        example_input: object,
        device: torch.device,
    ) -> None:
        self._runtime = runtime = model.hetmp
        self._original = original
        self._example, self._device = example_input, device
        self._assigned = False
        self._values: dict[Name, object] = {}
        self._sliced: int | None = None  # the mark of what was sliced, once it is read again
        steps = [s for s in runtime.schedule.steps if isinstance(s, CallStep)]
        paths = dict.fromkeys(s.node.path for s in steps if s.run.layer is not None)
        self._layers = [self._layer(path, model.get_submodule(path)) for path in paths]
        self._places = [
            (model.get_submodule(path.rpartition(".")[0])._modules, path.rpartition(".")[2], part)
            for path, part in model.named_modules()
            if path and path.partition(".")[0] != RESERVED
        ]

    def _layer(self, path: str, layer: nn.Module) -> _Layer:
        own, whole = settings(layer), settings(self._runtime.graph.skeleton.get_submodule(path))
        alike = frozenset(name for name, value in own.items() if whole.get(name) == value)
        return _Layer(path, layer, own, alike, dict(layer._parameters), own_forward(layer))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attributes":
        copied = copy.copy(self)  # what never changes is shared
        memo[id(self)] = copied
        copied._values = dict(self._values)
        copied._runtime = copy.deepcopy(self._runtime, memo)
        copied._layers = copy.deepcopy(self._layers, memo)
        copied._places = copy.deepcopy(self._places, memo)
        return copied

    @property
    def original(self) -> nn.Module:
        """A copy of the user's module, on the meta device, with the attributes that were set."""
        return self._with({})

    # --- of the model and its blocks

    def get(self, path: str, name: str) -> Any:
        """Return a plain attribute of the user's module at *path*.

        Raises:
            AttributeError: it has none of this name, or one that is not a number, a text or a
                tuple.
        """
        part, value = self._original.get_submodule(path), self._value(path, name)
        if value is _MISSING:
            where = f"{path!r} of the sliced model" if path else "the sliced model"
            raise AttributeError(f"{where} has no attribute {name!r}")
        if not _is_plain(value):
            what = "method" if callable(value) else type(value).__name__
            raise AttributeError(
                f"{name!r} of {type(part).__name__} is a {what}, which the sliced model does not "
                "have: take it from the module that was sliced"
            )
        return value

    def set(self, path: str, name: str, value: object) -> None:
        """Give the module at *path* another *value* of an attribute, and read it again.

        Raises:
            AgreedError: another program would be needed, or the value may change unseen.
        """
        old = self._value(path, name)
        if _is_plain(value):
            if _differs(value, old):
                self._read_again(path, name, value)
        elif old is not _MISSING:
            kind = type(self._original.get_submodule(path)).__name__
            raise AgreedError(_may_change(f"{name!r} of {kind}", value))

    # --- of layers

    def check_layers(self) -> None:
        """Take the settings that layers got since the last look, or refuse them.

        Raises:
            AgreedError: naming the layer and the setting, which keeps its value; or a part or
                parameter that was replaced.
        """
        assigned, self._assigned = self._assigned, False
        for children, name, part in self._places:
            if children.get(name) is not part:
                raise AgreedError(_replaced(f"part {name!r}", children.get(name)))
        for watched in self._layers:
            layer, old = watched.layer, watched.settings
            if assigned:
                watched.parameters = dict(layer._parameters)
            own = vars(layer)
            if own.get("forward") is not watched.forward:
                raise AgreedError(
                    f"forward of {watched.path!r} was replaced: the layer holds a share of the "
                    "module's, and runs in its own way: change the module, and slice it then"
                )
            for name, value in old.items():
                if own.get(name) is not value and _differs(own.get(name), value):
                    self._take_setting(watched, name, own.get(name))
            now = layer._parameters
            if any(now.get(name) is not old for name, old in watched.parameters.items()):
                _check_parameters(watched)

    def assigned(self) -> None:
        """Take the parameters that the layers have when next they run: a state was assigned."""
        self._assigned = True

    def _take_setting(self, watched: _Layer, name: str, value: object) -> None:
        path, layer = watched.path, watched.layer
        place = f"{path!r} ({type(layer).__name__})"
        try:
            if not _is_plain(value):
                raise AgreedError(_may_change(f"{name} of {place}", value))
            if name not in watched.whole:
                raise AgreedError(
                    f"{name} of {place} is this rank's share of the layer and cannot be set to "
                    f"{value!r}: change the module, and slice it then"
                )
            rule = rule_for(self._runtime.graph.skeleton.get_submodule(path))
            if rule is not None and name in rule.harmless:
                self._keep(path, name, value)
            else:
                self._read_again(path, name, value)
        except HetmpError:
            setattr(layer, name, watched.settings[name])
            raise
        watched.settings[name] = value
        self._give(path, name, value)

    def _give(self, path: str, name: str, value: object) -> None:
        """Give a setting to the layer's other forms, in which it runs again elsewhere."""
        runtime = self._runtime
        for number, program in enumerate(runtime.schedule.programs):
            for step in program.steps:
                if isinstance(step, CallStep) and step.node.path == path:
                    key = step_key(number, step)
                    if step.run.layer is not None and key in runtime.repeated:
                        setattr(runtime.repeated[key], name, value)

    # --- both

    def _value(self, path: str, name: str) -> object:
        """Return an attribute as it is now, ``_MISSING`` where the user's module has none."""
        if (path, name) in self._values:
            return self._values[path, name]
        return inspect.getattr_static(self._original.get_submodule(path), name, _MISSING)

    def _keep(self, path: str, name: str, value: object) -> None:
        """Note a *value* that was taken."""
        self._values[path, name] = value
        original = inspect.getattr_static(self._original.get_submodule(path), name, _MISSING)
        if not _differs(value, original):
            del self._values[path, name]
        self._runtime.attribute_mark = self._mark()

    def _mark(self) -> int:
        """Return a number for what runs: 0 while it is what was sliced.

        An attribute that no operation depends on, a rank's number, say, leaves it as it is.
        """
        layers = {watched.path for watched in self._layers}
        settings = sorted(item for item in self._values.items() if item[0][0] in layers)
        mark = zlib.crc32(repr(settings).encode()) if settings else 0
        if self._sliced is not None:
            mark ^= operations_mark(self._runtime.graph) ^ self._sliced
        return mark

    def _with(self, values: Mapping[Name, object]) -> nn.Module:
        """Return a copy of the user's module with what was set, and *values*."""
        module = copy.deepcopy(self._original)
        for (path, name), value in {**self._values, **values}.items():
            setattr(module.get_submodule(path), name, value)
        return module

    def _read_again(self, path: str, name: str, value: object) -> None:
        """Read the module again with another *value* of an attribute, and take its program.

        Raises:
            AgreedError: it would lie otherwise over the ranks.
        """
        what = f"{'.'.join(filter(None, (path, name)))!r} of a sliced model"
        try:
            graph = read_graph(self._with({(path, name): value}), self._example, self._device)
            schedule = schedule_model(graph, self._runtime.plan)
        except HetmpError as error:
            raise AgreedError(f"{what} cannot be set to {value!r}: {error}") from error
        if not self._lies_alike(graph, schedule):
            raise AgreedError(
                f"{what} cannot be set to {value!r}: the module then runs other operations than "
                "those that were sliced: set it on the module, and slice it then"
            )
        if self._sliced is None:
            self._sliced = operations_mark(self._runtime.graph)
        self._runtime.take(graph, schedule)
        self._keep(path, name, value)

    def _lies_alike(self, graph: ModelGraph, schedule: Schedule) -> bool:
        runtime = self._runtime
        return (
            make_table(graph, schedule) == runtime.table
            and graph.held == runtime.graph.held
            and schedule.numbers == runtime.schedule.numbers
            and [[_flow(step) for step in p.steps] for p in schedule.modes.values()]
            == [[_flow(step) for step in p.steps] for p in runtime.schedule.modes.values()]
        )


def _check_parameters(watched: _Layer) -> None:
    """Refuse parameters that were put in the place of this rank's share."""
    for name, old in watched.parameters.items():
        new = watched.layer._parameters.get(name)
        # torch.func.functional_call puts tensors there for one call.
        lent = isinstance(new, Tensor) and not isinstance(new, nn.Parameter)
        alike = new is not None and old is not None and new.shape == old.shape
        if new is not old and not (lent and alike):
            raise AgreedError(_replaced(f"parameter {watched.path}.{name}", new))


def _replaced(what: str, new: object) -> str:
    if new is None:
        done = "removed"
    elif isinstance(new, nn.Parameter):
        done = f"replaced by one of shape {tuple(new.shape)}"
    else:
        done = f"replaced by a {type(new).__name__}"
    return (
        f"{what} of the sliced model was {done}: each rank holds a share, planned for the module "
        "as it was: change the module, and slice it then"
    )


def _may_change(what: str, value: object) -> str:
    return (
        f"{what} was read when the module was sliced, and a {type(value).__name__} may change "
        "unseen: set it before slicing, or set a number, a text or a tuple"
    )


def _differs(new: object, old: object) -> bool:
    """Return whether a plain value is another one, or of another type."""
    return type(new) is not type(old) or bool(new != old)


def _is_plain(value: object) -> bool:
    return is_plain_value(value) or isinstance(value, np.generic | torch.dtype | torch.device)


def _flow(step: ProgramStep) -> str:
    """Return how values pass through a step: all but numbers and sizes."""
    if isinstance(step, ExchangeStep):
        return f"{step.name} {step.sources} {step.before} {step.after} {step.scope}"
    if isinstance(step, CallStep):
        return f"{step.node.path} {step.name} {step.inputs} {step.run.flow} {step.scope}"
    return str(step)


def settle(model: Part, attributes: Attributes) -> None:
    """Let all parts of *model* that hold others pass what is set on them to *attributes*."""
    for path, part in model.named_modules():
        if isinstance(part, Part):
            part.settle(attributes, path)
