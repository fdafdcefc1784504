"""One operation as a module calls it, the facts known about its values, and how it runs."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeGuard

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from hetmp.core.state import FULL, L, OperandState, States
from hetmp.ops.schemes import Scheme

Function = Callable[..., Any]
"""A function of torch's or of the user's: it takes and gives what it likes."""

Layer = TypeVar("Layer", bound=nn.Module, default=nn.Module, covariant=True)
"""The class of the layer that is called."""

Shape = tuple[int | None, ...]
"""The sizes of an activation, batch first; None where they are not known before it runs."""


@dataclass(frozen=True)
class Ref:
    """A value by its name, where it stands among arguments."""

    name: str


@dataclass(frozen=True)
class Value:
    """The facts known about a value before it runs.

    A graph is probed with inputs of different sizes, to tell fixed sizes from accidental ones.

    Attributes:
        sizes: of a tensor, its shape in every probe; else empty.
        items: of a tuple or list of tensors, its items; else empty.
        image_bytes: of a tensor, bytes per image of the batch, as far as the first probe tells.
    """

    sizes: tuple[tuple[int, ...], ...] = ()
    items: "tuple[Value, ...]" = ()
    image_bytes: int = 0

    @property
    def is_tensor(self) -> bool:
        """Whether it is one tensor."""
        return bool(self.sizes)

    @property
    def holds_tensors(self) -> bool:
        """Whether it is a tensor, or a tuple with one in it."""
        return self.is_tensor or any(item.holds_tensors for item in self.items)

    @property
    def shape(self) -> Shape:
        """A tensor's sizes, None where the probes differ."""
        return tuple(
            sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*self.sizes, strict=True)
        )

    @property
    def dims(self) -> int:
        """The number of dimensions of a tensor."""
        return len(self.sizes[0])


@dataclass(frozen=True)
class Call(Generic[Layer]):
    """One operation.

    Attributes:
        target: a layer (on the meta device), a function, or the name of a tensor's method.
        args, kwargs: as the module gives them, with a ``Ref`` for every value.
        values: the values referred to, by name, in order of appearance.
        result: the value of the result.
    """

    target: Layer | Function | str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    values: Mapping[str, Value]
    result: Value

    def __post_init__(self) -> None:
        """Put the first argument first, also where the module names it: ``f(input=x)``."""
        first = None if self.args else _first_name(self.target)
        if first is not None and first in self.kwargs:
            rest = {name: value for name, value in self.kwargs.items() if name != first}
            object.__setattr__(self, "args", (self.kwargs[first],))
            object.__setattr__(self, "kwargs", rest)

    @property
    def layer(self) -> Layer | None:
        """The layer that is called; None for a function or method."""
        return self.target if self._is_layer(self.target) else None

    @property
    def whole_layer(self) -> Layer:
        """The layer that is called, whole, where it is known that one is."""
        layer = self.layer
        assert layer is not None
        return layer

    def _is_layer(self, target: object) -> TypeGuard[Layer]:
        # mypy takes a function for a layer, too: only this tells it which target is one.
        return isinstance(target, nn.Module)

    @property
    def has_tensors(self) -> bool:
        """Whether the layer that is called has parameters or buffers."""
        tensors = (
            (*self.layer.parameters(), *self.layer.buffers()) if self.layer is not None else ()
        )
        return len(tensors) > 0

    @property
    def operands(self) -> list[str]:
        """The names of the values that are or hold tensors, in order of appearance."""
        return [name for name, value in self.values.items() if value.holds_tensors]

    @property
    def operand(self) -> Value:
        """The value of the first tensor operand."""
        return next(value for value in self.values.values() if value.holds_tensors)

    def argument(self, position: int, name: str, default: object = None) -> object:
        """Return an argument by its *position* or its *name*; *default* where there is none."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def setting(self, position: int, name: str, default: object = None) -> object:
        """Return what a layer keeps under *name*, or the argument of a function."""
        if self.layer is not None:
            return getattr(self.layer, name)
        return self.argument(position, name, default)

    @property
    def title(self) -> str:
        """The name of the layer's class, the function or the method."""
        if isinstance(self.target, str):
            return self.target
        return getattr(self.target, "__name__", type(self.target).__name__)

    @cached_property
    def signature(self) -> str:
        """The operation, its settings and its sizes, as a line: equal for equal work.

        For example ``Conv2d(60, 240, kernel_size=(3, 3), stride=(1, 1)) 60x32x32``. Sizes are of
        whole values, without the batch.
        """
        if self.layer is not None:
            what = " ".join(repr(self.layer).split())
            return " ".join([what, *(_sizes(self.values[name]) for name in self.operands)])

        def shown(item: object) -> object:
            if isinstance(item, Ref):
                return _Bare(_sizes(self.values[item.name]))
            return _Bare(type(item).__name__) if isinstance(item, nn.Module) else item

        parts = [repr(part) for part in mapped(self.args, shown)]
        parts += [f"{name}={part!r}" for name, part in mapped(self.kwargs, shown).items()]
        return f"{self.title}({', '.join(parts)})"

    def invoke(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
        """Call the function or method with values in the place of references."""
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


class _Bare(str):
    """A string whose ``repr`` has no quotes."""

    def __repr__(self) -> str:
        return str(self)


def _sizes(value: Value) -> str:
    """Return the sizes of a value without the batch."""
    if value.is_tensor:
        return "x".join(str(size) for size in value.sizes[0][1:]) or "1"
    return "+".join(_sizes(item) for item in value.items) or "?"


def _first_name(target: nn.Module | Function | str) -> str | None:
    """Return the name of the first argument of a layer or function."""
    if isinstance(target, str):
        return "input"
    if target is torch.where:
        return "condition"
    called = target.forward if isinstance(target, nn.Module) else target
    try:
        return next(iter(inspect.signature(called).parameters), None)
    except (TypeError, ValueError):
        return "input"  # what torch's own functions call it, which have no signature


@dataclass(frozen=True)
class Flow(Generic[L]):
    """The states in which an operation takes its operands, and the state of its result.

    Attributes:
        wants: the state of every operand, by name.
        gives: a state, or one for each item of a tuple.
    """

    wants: States[L]
    gives: OperandState[L]


@dataclass(frozen=True)
class OperatorRun(Generic[L, Layer]):
    """One call, and how it runs on slices.

    Attributes:
        scheme: the scheme of a layer that mixes channels; else None.
        owned: the state that decides where the bias of an ``inputs`` layer lies.
        wire: for exchanges inside the operator: see ``Exchange``.
    """

    call: Call[Layer]
    flow: Flow[L]
    scheme: Scheme | None
    owned: OperandState[L]
    wire: str | None = None

    @property
    def layer(self) -> Layer | None:
        """The layer that is called; None for a function or method."""
        return self.call.layer

    @property
    def whole_layer(self) -> Layer:
        """The layer that is called, whole, where it is known that one is."""
        return self.call.whole_layer

    @property
    def source(self) -> OperandState[L]:
        """The state of the first operand."""
        return next(iter(self.flow.wants.values()), FULL)

    @property
    def target(self) -> OperandState[L]:
        """The state of the result."""
        return self.flow.gives


def references(structure: object) -> Iterator[str]:
    """Yield the names of all values that *structure* refers to, in order, maybe repeatedly."""
    if isinstance(structure, Ref):
        yield structure.name
    elif isinstance(structure, Mapping):
        for item in structure.values():
            yield from references(item)
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from references(item)
    elif isinstance(structure, slice):
        yield from references((structure.start, structure.stop, structure.step))


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def filled(structure: object, fill: Callable[[str], object]) -> Any:
    """Replace every reference in *structure* by ``fill(name)``; the containers are new."""
    return mapped(structure, lambda item: fill(item.name) if isinstance(item, Ref) else item)


def mapped(structure: object, change: Callable[[object], object]) -> Any:
    """Replace every item of *structure* by ``change(item)``; the containers are plain Python's."""
    if isinstance(structure, tuple):
        items = [mapped(item, change) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else tuple(items)
    if isinstance(structure, list):
        return [mapped(item, change) for item in structure]
    if isinstance(structure, Mapping):
        return {name: mapped(item, change) for name, item in structure.items()}
    if isinstance(structure, slice):
        bounds = (structure.start, structure.stop, structure.step)
        return slice(*(mapped(bound, change) for bound in bounds))
    return change(structure)
