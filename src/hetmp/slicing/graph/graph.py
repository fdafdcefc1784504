"""A module as hetmp reads it: its operations in the order in which they run."""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import Call, Rule, Value, references
from hetmp.slicing.graph.inputs import Example, Inputs
from hetmp.slicing.graph.module_calls import ModuleCall
from hetmp.slicing.graph.scope import Scope


@dataclass(frozen=True)
class Mode:
    """A way in which a module is called.

    Attributes:
        training: whether it is in training mode.
        grad: whether the caller computes gradients.
    """

    training: bool
    grad: bool

    def __str__(self) -> str:
        return ("training" if self.training else "evaluation") + ("" if self.grad else ", no_grad")


TRAINING, EVALUATION = Mode(training=True, grad=True), Mode(training=False, grad=True)

MODES = (TRAINING, EVALUATION, Mode(training=True, grad=False), Mode(training=False, grad=False))
"""The modes that are read; those without gradients only where the module asks for them."""

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
"""Where an object lies in memory, as its repr says it: it differs by process."""


@dataclass(frozen=True)
class Node:
    """One operation: a call of a layer, a function or a method.

    Attributes:
        name: unique in the trace.
        path: the layer's place in the module, as in the user's ``state_dict``; of a function
            or method, that of the module that calls it.
        reason: why it is computed whole on every rank: it has no rule, or is set up in a way
            that its rule does not cover; None where a rule covers it.
        line: the user's line, ``file:number``, as far as it is known.
        scope: what the module sets around it.
    """

    name: str
    path: str
    call: Call
    rule: Rule
    reason: str | None
    line: str
    scope: Scope

    @property
    def place(self) -> str:
        """The operation, named for the user: its path or title, and its line."""
        if self.call.layer is not None:
            return place(self.path, self.call.layer)
        within = f" of {self.path!r}" if self.path else ""
        return f"{self.call.title!r}{within}" + (f" at {self.line}" if self.line else "")


@dataclass(frozen=True)
class Trace:
    """The operations of a module in one of its modes.

    Attributes:
        entries: the values that the user gives: name -> name of the input.
        attributes: parameters, buffers and constants that are values: name -> place in the module.
        nodes: the operations, in order.
        result: what the module returns, with a ``Ref`` for every value.
        values: the facts known about every value, by name.
        batch: the only number of images that it takes, None where any will do.
        calls: the calls of the module's parts, in the order in which they begin.
        changes: operations that work in place -> the value that each changes.
        every: the operations in order, with those that nothing needs.
    """

    entries: Mapping[str, str]
    attributes: Mapping[str, str]
    nodes: tuple[Node, ...]
    result: object
    values: Mapping[str, Value]
    batch: int | None
    calls: tuple[ModuleCall, ...] = ()
    changes: Mapping[str, str] = field(default_factory=dict)
    every: tuple[Node, ...] = ()

    def consumers(self, name: str) -> list[Node]:
        """Return the nodes that take a value."""
        return self._consumers.get(name, [])

    @cached_property
    def returned(self) -> frozenset[str]:
        """The names of the values that the module returns."""
        return frozenset(references(self.result))

    @cached_property
    def _consumers(self) -> dict[str, list[Node]]:
        consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.call.values:
                consumers.setdefault(name, []).append(node)
        return consumers

    @cached_property
    def read(self) -> set[str]:
        """The places of the attributes whose values or sizes are read."""
        return {
            place
            for name, place in self.attributes.items()
            if name in self.returned or not all(map(_asks_for_kind, self.consumers(name)))
        }


@dataclass(frozen=True)
class ModelGraph:
    """A module as hetmp reads it.

    Attributes:
        skeleton: a copy of the module whose parameters and buffers are on the meta device.
        modes: its operations in every mode; often one and the same object.
        inputs: how the arguments of a call become entries.
        constants: tensors that the module made while it was read.
        aliases: names of parameters, buffers and modules that are another one's -> that one.
        dims: how many dimensions a batch of input has, None where any will do.
        example: of the inputs, on the meta device; without tensors where no size could be guessed.
        held: by mode, training or not, the parts that the module's own ``train`` leaves in the
            other one, by name.
        hooked: the parts that had hooks when the module was read, by name.
    """

    skeleton: nn.Module
    modes: Mapping[Mode, Trace]
    inputs: Inputs
    constants: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    dims: int | None
    example: Example
    held: Mapping[bool, frozenset[str]]
    hooked: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, object]) -> "ModelGraph":
        return self  # models that are copied share what never changes

    @property
    def training(self) -> Trace:
        """The operations in training."""
        return self.modes[TRAINING]

    @property
    def evaluation(self) -> Trace:
        """The operations in evaluation mode, for a caller who computes gradients."""
        return self.modes[EVALUATION]

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The distinct traces, training's first: one where all modes run the same operations."""
        return tuple({id(trace): trace for trace in self.modes.values()}.values())

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operations of all traces, those of training first."""
        return tuple(node for trace in self.traces for node in trace.nodes)

    def mixing(self) -> Iterator[Node]:
        """Yield the layers that mix channels, each once: those that a plan names."""
        seen = set()
        for node in self.nodes:
            if node.rule.mixes and node.path not in seen:
                seen.add(node.path)
                yield node

    def is_tied(self, node: Node) -> bool:
        """Return whether a layer shares a tensor with another layer, function or method."""
        layer, path = node.call.whole_layer, node.path
        holders = {
            self._first(f"{path}.{name}"): layer.get_submodule(name.rpartition(".")[0])
            for name in node.rule.tensors(layer)
        }
        return bool(holders.keys() & self._read) or any(
            self._owners[name] != {holder} for name, holder in holders.items()
        )

    @cached_property
    def _read(self) -> set[str]:
        """The first names of the attributes that functions and methods read."""
        return {self._first(place) for trace in self.traces for place in trace.read}

    @cached_property
    def _owners(self) -> dict[str, set[nn.Module]]:
        """The layers that hold each parameter and buffer, by its first name."""
        owners: dict[str, set[nn.Module]] = {}
        for path, layer in self.skeleton.named_modules(remove_duplicate=False):
            for name in (*layer._parameters, *layer._buffers):
                owners.setdefault(self._first(f"{path}.{name}".lstrip(".")), set()).add(layer)
        return owners

    def _first(self, name: str) -> str:
        return self.aliases.get(name, name)

    def is_layer(self, path: str) -> bool:
        """Return whether the part at *path* is one operation, or lies inside of one."""
        return any(path == layer or path.startswith(f"{layer}.") for layer in self._layers)

    def why_no_hook(self, path: str, *, backward: bool = False) -> str | None:
        """Return why no hook on the part at *path* can see whole values, or None.

        *backward* asks for hooks that see gradients.
        """
        calls = self._calls.get(path, [])
        for call in calls:
            if call.reason is not None:
                return call.reason
            if backward and call.doubled:
                return "it takes or gives one value twice, so its gradients cannot be told apart"
        if calls:
            return None
        around = [layer for layer in self._layers if path.startswith(f"{layer}.")]
        if around:
            return f"it is inside {around[0]!r}, which is kept as one: put the hook on that"
        return "the model never calls it"

    @cached_property
    def _layers(self) -> tuple[str, ...]:
        """The paths of the layers that are called, each once."""
        layers = (node.path for node in self.nodes if node.call.layer is not None)
        return tuple(dict.fromkeys(layers))

    @cached_property
    def _calls(self) -> dict[str, list[ModuleCall]]:
        """The calls of every part, in all modes."""
        calls: dict[str, list[ModuleCall]] = {}
        for trace in self.traces:
            for call in trace.calls:
                calls.setdefault(call.path, []).append(call)
        return calls

    def fallbacks(self) -> Iterator[Node]:
        """Yield the operations that every rank computes whole because no rule fits."""
        return (node for node in self.nodes if node.reason is not None)

    def check_strict(self) -> None:
        """Refuse a model with an operation that hetmp has no rule for.

        Raises:
            HetmpError: naming the first one.
        """
        for node in self.fallbacks():
            raise HetmpError(
                f"{'layer' if node.call.layer is not None else 'operation'} {node.place} cannot be "
                f"sliced: {node.reason} (strict: it may not be computed whole)"
            )


def fingerprint(graph: ModelGraph) -> str:
    """Return a short text that differs between models: their operations and sizes."""
    lines = [f"{node.path} {node.call.signature}" for node in graph.training.nodes]
    return f"{zlib.crc32(chr(10).join(lines).encode()):08x}"


def operations_mark(graph: ModelGraph) -> int:
    """Return a number for the operations of all modes, the same on ranks that read the same."""
    mark = 0
    for trace in graph.traces:
        lines = [
            f"{node.name} {node.path} {node.call.operands} {node.call.signature} {node.scope}"
            for node in trace.nodes
        ]
        text = "\n".join([*lines, str(trace.result)])
        mark = zlib.crc32(_ADDRESS.sub("", text).encode(), mark)
    return mark


def _asks_for_kind(node: Node) -> bool:
    return node.call.target is getattr and node.call.argument(1, "name") in ("dtype", "device")


def place(path: str, layer: nn.Module) -> str:
    """Name a layer for the user: ``'features.0' (Conv2d)``."""
    return f"{path!r} ({type(layer).__name__})"
