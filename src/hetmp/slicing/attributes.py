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
from torch import nn

from hetmp.cluster import AgreedError
from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL
from hetmp.ops import is_plain_value, own_forward, rule_for, settings
from hetmp.slicing.block import Part
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.orders import step_key
from hetmp.slicing.schedule import CallStep, ExchangeStep, ProgramStep, Schedule
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.table import make_table

Name = tuple[str, str]
"""(path of the part, name of the attribute)."""


@dataclass
class _Layer:
    """A layer, the settings that it had when it was last looked at, its parameters and forward."""

    path: str
    layer: nn.Module
    settings: dict[str, object]
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
        steps = [s for s in runtime.schedule.steps if isinstance(s, CallStep)]
        paths = dict.fromkeys(s.node.path for s in steps if s.run.layer is not None)
        layers = {path: model.get_submodule(path) for path in paths}
        self._layers = [
            _Layer(path, layer, settings(layer), dict(layer._parameters), own_forward(layer))
            for path, layer in layers.items()
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attributes":
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied._runtime = copy.deepcopy(self._runtime, memo)
        copied._layers = copy.deepcopy(self._layers, memo)
        return copied

    @property
    def original(self) -> nn.Module:
        """The user's module as it was before it was read, on the meta device: to be copied."""
        return self._original

    # --- of the model and its blocks

    def get(self, path: str, name: str) -> Any:
        """Return a plain attribute of the user's module at *path*.

        Raises:
            AttributeError: it has none of this name, or one that is not a number, a text or a
                tuple.
        """
        part = self._original.get_submodule(path)
        where = f"{path!r} of the sliced model" if path else "the sliced model"
        missing = object()
        value = inspect.getattr_static(part, name, missing)
        if value is missing:
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
        part = self._original.get_submodule(path)
        missing = object()
        old = inspect.getattr_static(part, name, missing)
        if _is_plain(value):
            if type(old) is not type(value) or old != value:
                self._read_again({(path, name): value})
        elif old is not missing:
            raise AgreedError(
                f"{name!r} of {type(part).__name__} was read when the module was sliced, and a "
                f"{type(value).__name__} may change unseen: set it before slicing, or set a "
                "number, a text or a tuple"
            )

    # --- of layers

    def check_layers(self) -> None:
        """Take the settings that layers got since the last look, or refuse them.

        Raises:
            AgreedError: naming the layer and the setting, which keeps its value; or a parameter
                that was replaced.
        """
        assigned, self._assigned = self._assigned, False
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
                if own.get(name) is not value and own.get(name) != value:
                    self._take_setting(watched, name, own.get(name))
            now = layer._parameters
            if any(now.get(name) is not old for name, old in watched.parameters.items()):
                self._check_parameters(watched)

    def _take_setting(self, watched: _Layer, name: str, value: object) -> None:
        old, path, layer = watched.settings[name], watched.path, watched.layer
        whole = self._runtime.graph.skeleton.get_submodule(path)
        place = f"{path!r} ({type(layer).__name__})"
        try:
            if settings(whole).get(name) != old:
                raise AgreedError(
                    f"{name} of {place} is this rank's share of the layer and cannot be set to "
                    f"{value!r}: change the module, and slice it then"
                )
            rule = rule_for(whole)
            if rule is None or name not in rule.harmless:
                self._read_again({(path, name): value})
        except HetmpError:
            setattr(layer, name, old)
            raise
        self._note(path, name, value)
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

    def _check_parameters(self, watched: _Layer) -> None:
        """Refuse parameters that were put in the place of this rank's share."""
        now = watched.layer._parameters
        for name, old in watched.parameters.items():
            new = now.get(name)
            if new is old:
                continue
            full = f"{watched.path}.{name}"
            cut = self._runtime.table[full].state != FULL
            kind = "removed" if new is None else f"replaced by one of shape {tuple(new.shape)}"
            same = new is not None and old is not None and new.shape == old.shape
            # torch.func.functional_call puts tensors there for one call.
            if not same or (cut and isinstance(new, nn.Parameter)):
                raise AgreedError(
                    f"parameter {full!r} of the sliced model was {kind}: each rank holds a share, "
                    "planned for the module as it was: change the module, and slice it then"
                )

    def assigned(self) -> None:
        """Take the parameters that the layers have when next they run: a state was assigned."""
        self._assigned = True

    # --- both

    def _read_again(self, values: Mapping[Name, object]) -> None:
        """Read the module again with other *values* of attributes, and take its program.

        Raises:
            AgreedError: it would lie otherwise over the ranks.
        """
        original = copy.deepcopy(self._original)
        for (path, name), value in values.items():
            setattr(original.get_submodule(path), name, value)
        (path, name), value = next(iter(values.items()))
        what = f"{'.'.join(filter(None, (path, name)))!r} of a sliced model"
        try:
            graph = read_graph(original, self._example, self._device)
            schedule = schedule_model(graph, self._runtime.plan)
        except HetmpError as error:
            raise AgreedError(f"{what} cannot be set to {value!r}: {error}") from error
        if not self._lies_alike(graph, schedule):
            raise AgreedError(
                f"{what} cannot be set to {value!r}: the module then runs other operations than "
                "those that were sliced: set it on the module, and slice it then"
            )
        self._runtime.take(graph, schedule)
        self._original = original
        for (path, name), value in values.items():
            self._note(path, name, value)

    def _lies_alike(self, graph: ModelGraph, schedule: Schedule) -> bool:
        runtime = self._runtime
        return (
            make_table(graph, schedule) == runtime.table
            and graph.held == runtime.graph.held
            and schedule.numbers == runtime.schedule.numbers
            and [[_flow(step) for step in p.steps] for p in schedule.modes.values()]
            == [[_flow(step) for step in p.steps] for p in runtime.schedule.modes.values()]
        )

    def _note(self, path: str, name: str, value: object) -> None:
        text = f"{path} {name} {value!r}"
        self._runtime.attribute_mark = zlib.crc32(text.encode(), self._runtime.attribute_mark)


def _is_plain(value: object) -> bool:
    return is_plain_value(value) or isinstance(value, np.generic | torch.dtype | torch.device)


def _flow(step: ProgramStep) -> str:
    """Return how values pass through a step: all but numbers and sizes."""
    if isinstance(step, ExchangeStep):
        return f"{step.name} {step.sources} {step.before} {step.after} {step.scope}"
    if isinstance(step, CallStep):
        return f"{step.node.path} {step.name} {step.inputs} {step.run.flow}"
    return str(step)


def settle(model: Part, attributes: Attributes) -> None:
    """Let all parts of *model* that hold others pass what is set on them to *attributes*."""
    for path, part in model.named_modules():
        if isinstance(part, Part):
            part.settle(attributes, path)
