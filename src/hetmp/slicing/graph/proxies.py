"""Stand-ins for activations and sizes while a module is traced.

torch.fx alone does not know the values it records, so a module with ``if x.shape[1] != 3`` cannot
be traced. With an example input, every recorded operation is also run on the meta device, and the
stand-ins know their shapes and numbers. A module may then branch on them, loop over them and hand
them to Python: that fixes the number, so it is confirmed whenever the model runs.
"""

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from hetmp.ops import assigned, mapped
from hetmp.slicing.graph.items import ItemsList, ItemsTuple, ShapeProxy
from hetmp.slicing.graph.lines import is_library

_ASSIGNED = "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift"

ASSIGNMENTS = tuple(
    getattr(operator, name) for name in _ASSIGNED.split() if hasattr(Tensor, f"__{name}__")
)
"""``+=`` and its kin, as far as they change a tensor in place."""

_DIMS = ("ndim", "dim", "ndimension")
_FIXED = (*_DIMS, "is_floating_point", "is_complex", "layout")
"""Attributes and methods of a tensor that never depend on its sizes: answered at once."""

_WHOLE_SIZES = ("shape", "size", "numel", "nelement", *_FIXED)
"""What a module may ask of a parameter or buffer: its whole sizes, whatever a rank holds of it."""

_WRITTEN: dict[str, Callable[[Any], object]] = {
    "T": lambda x: x.permute(*reversed(range(x.ndim))),
    "mT": lambda x: x.transpose(-2, -1),
    "data": lambda x: x.detach(),
}
"""Attributes that are tensors, as the methods that give them."""


_isinstance = builtins.isinstance


class Proxy(fx.Proxy):
    """A stand-in that knows nothing of its value, but the sizes of a parameter or buffer.

    It records assignments such as ``x += 1``, which torch.fx takes for work on a copy.
    """

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if self.node.op == "get_attr" and name in _WHOLE_SIZES:
            return getattr(self.tracer.attribute(str(self.node.target)), name)
        return super().__getattr__(name)


def _recorded(function: Callable[..., object]) -> Callable[..., fx.Proxy]:
    def record(self: fx.Proxy, *args: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    return record


for _function in ASSIGNMENTS:
    setattr(Proxy, f"__{_function.__name__}__", _recorded(_function))
Proxy.__setitem__ = _recorded(assigned)  # type: ignore[index]


class KnownProxy(Proxy):
    """A stand-in that knows its value in the example: ``value``, on the meta device."""

    def __init__(self, node: fx.Node, tracer: Any, value: Any) -> None:
        super().__init__(node, tracer)
        self.value = value

    def item(self, index: object) -> object:
        """Return the stand-in for one of several values."""
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    @property
    def answer(self) -> Any:
        """The value as the module knows it: no tensor of it is on the meta device."""
        return self.tracer.device if isinstance(self.value, torch.device) else self.value

    def fixed(self) -> Any:
        """Return the value itself, and confirm it in every pass from now on."""
        self.tracer.confirm(self)
        return self.answer


class TensorProxy(KnownProxy):
    """An activation, a parameter or a buffer."""

    stands_for: type = Tensor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.value, name)
        if self.node.op == "get_attr" and name in _WHOLE_SIZES:
            return value
        if name in _FIXED:
            self.tracer.dims_matter |= name in _DIMS
            return value
        if name == "requires_grad":
            return self.tracer.requires_grad(self)
        if name == "_version":
            raise AttributeError("a tensor's _version, which differs on slices, cannot be read")
        if name in _WRITTEN:
            return _WRITTEN[name](self)
        if name == "is_contiguous":
            return self.keep_order
        if callable(value):
            return _Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def keep_order(self, *order: object, **named: object) -> bool:
        """Return whether the example is contiguous, and if so, see to it that this stays true.

        A sliced layer may give its output in another order of memory. What works on a tensor in
        any order works on this one, so no need not stay true.
        """
        if not self.value.is_contiguous(*order, **named):
            return False
        arguments = (self, *order)
        self.node = self.tracer.create_proxy("call_method", "contiguous", arguments, named).node
        return True

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, *rest: Any, **named: Any) -> Any:
        caller = sys._getframe(1)
        for proxy in (*_flat(rest), *_flat(named)):
            proxy.tracer.forget((id(caller), caller.f_lasti))
        # torch.fx looks for stand-ins in plain tuples and lists, not in those of a split's parts.
        rest, named = mapped((rest, named), lambda item: item)
        return super().__torch_function__(orig_method, types, *rest, **named)

    def __len__(self) -> int:
        return int(self.size(0))

    def __iter__(self) -> Iterator[Any]:
        return iter([self.item(i) for i in range(len(self))])


class _Method:
    """A tensor's method, before it is called."""

    def __init__(self, proxy: TensorProxy, name: str) -> None:
        self._proxy, self._name = proxy, name

    def __call__(self, *args: object, **kwargs: object) -> object:
        proxy = self._proxy
        return proxy.tracer.create_proxy("call_method", self._name, (proxy, *args), kwargs)


class NumberProxy(KnownProxy):
    """A size, or a number that a module computes from sizes."""

    def __hash__(self) -> int:
        # Equal numbers of two tracings are not the same: they must not be cached.
        raise TypeError("a size is looked up in a dict, a set or a cache of calls: give int(size)")

    @property
    def stands_for(self) -> type:
        """The type of the number."""
        return type(self.value)

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self.value, name):
            raise AttributeError(name)
        return getattr(self.fixed(), name)

    def __bool__(self) -> bool:
        return bool(self.fixed())

    def __int__(self) -> int:
        return int(self.fixed())

    def __index__(self) -> int:
        # torch's C code calls this before it decides to record the call instead: see forget.
        caller = sys._getframe(1)
        self.tracer.confirm(self, (id(caller), caller.f_lasti))
        return operator.index(self.value)

    def __float__(self) -> float:
        return float(self.fixed())

    def __format__(self, spec: str) -> str:
        return self._written(format(self.value, spec))

    def __repr__(self) -> str:
        # Of torch's own messages nothing depends.
        if is_library(sys._getframe(1)):
            return super().__repr__()
        return self._written(repr(self.value))

    def _written(self, text: str) -> str:
        self.tracer.texts.add(self, text)
        return text

    def __mul__(self, other: object) -> object:
        return self._times(other, (self, other))

    def __rmul__(self, other: object) -> object:
        return self._times(other, (other, self))

    def _times(self, other: object, factors: tuple[object, object]) -> object:
        if _isinstance(other, str | list | tuple):  # repeated
            return other * self.fixed()
        return self.tracer.create_proxy("call_function", operator.mul, factors, {})

    def __divmod__(self, other: Any) -> object:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> object:
        return other // self, other % self

    def __round__(self, *digits: int) -> object:
        return self.tracer.create_proxy("call_function", round, (self, *digits), {})


class SettingProxy(KnownProxy):
    """A device, a dtype or another value that is neither a tensor nor a number.

    It is recorded where it is handed on, and fixed where the module looks at it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.answer, name)
        if not callable(value):
            self.tracer.confirm_attribute(self, name, value)
            return value
        return getattr(self.fixed(), name)

    def __str__(self) -> str:
        return str(self.fixed())

    def __repr__(self) -> str:
        if is_library(sys._getframe(1)):
            return super().__repr__()
        return repr(self.fixed())

    def __hash__(self) -> int:
        return hash(self.fixed())

    def __contains__(self, item: object) -> bool:
        return item in self.fixed()

    def __enter__(self) -> object:
        return self.fixed().__enter__()

    def __exit__(self, *raised: object) -> object:
        return self.answer.__exit__(*raised)


class NamedProxy(KnownProxy):
    """Several values with names, as ``torch.max(x, 1)`` gives them."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.value, name)
        places = [i for i, item in enumerate(self.value) if item is value]
        if not places:
            raise AttributeError(name)
        return self.item(places[0])

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.item(i) for i in range(len(self))])


def _flat(structure: Any) -> Iterator["KnownProxy"]:
    """Yield the stand-ins in a structure of tuples, lists and dicts."""
    if type(structure) in (TensorProxy, NumberProxy):
        yield structure
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from _flat(item)
    elif type(structure) is dict:
        yield from _flat(list(structure.values()))


def holds_stand_in(value: object) -> bool:
    """Return whether *value* is a stand-in, or a tuple, list or dict with one in it."""
    if isinstance(value, tuple | list):
        return any(map(holds_stand_in, value))
    if type(value) is dict:
        return any(map(holds_stand_in, value.values()))
    return _isinstance(value, fx.Proxy)


@contextmanager
def instances() -> Iterator[None]:
    """Make ``isinstance`` take stand-ins, in Python code inside, for what they stand for.

    A class of theirs that lies would fool torch's C code too, which would look for a tensor's
    memory in them.
    """
    with _asked_by(_is_instance):
        yield


@contextmanager
def no_instances() -> Iterator[None]:
    """Use Python's own, faster ``isinstance`` where no stand-ins can occur."""
    with _asked_by(_isinstance):
        yield


@contextmanager
def _asked_by(is_instance: Any) -> Iterator[None]:
    before = builtins.isinstance
    builtins.isinstance = is_instance
    try:
        yield
    finally:
        builtins.isinstance = before


def _is_instance(item: Any, kinds: Any) -> bool:
    kind = type(item)
    if kind in (TensorProxy, NumberProxy) and issubclass(item.stands_for, kinds):
        return True
    if kind is SettingProxy and _isinstance(item.answer, kinds):
        return True
    if kind is ShapeProxy and issubclass(torch.Size, kinds):
        return True
    return _isinstance(item, kinds)


def known(node: fx.Node, tracer: object, value: object) -> object:
    """Return the stand-in for *node*, whose example is *value*."""
    if isinstance(value, Tensor):
        return TensorProxy(node, tracer, value)
    if isinstance(value, int | float):
        return NumberProxy(node, tracer, value)
    if isinstance(value, tuple | list):
        if type(value) not in (tuple, list, torch.Size):
            return NamedProxy(node, tracer, value)
        whole = KnownProxy(node, tracer, value)
        kinds = {torch.Size: ShapeProxy, tuple: ItemsTuple, list: ItemsList}
        items = kinds[type(value)](whole.item(i) for i in range(len(value)))
        items.node = node
        return items
    return SettingProxy(node, tracer, value)
