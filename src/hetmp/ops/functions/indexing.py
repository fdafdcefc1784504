"""Parts of an activation: read by index, chunk or split, and assigned."""

import operator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hetmp.cluster import Group
from hetmp.core.state import L, Sliced, State, States
from hetmp.ops.call import Call, Flow, Function, OperatorRun, Ref, references
from hetmp.ops.rule import Rule


class Indexing(Rule):
    """``x[...]`` of a tensor, and the items of a tuple of results."""

    functions = (operator.getitem,)
    views = ("getitem",)

    def takes_item(self, call: Call) -> bool:
        return isinstance(call.argument(1, "index"), int)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        name = next(iter(states))
        state, index = states[name], call.argument(1, "index")
        if isinstance(state, tuple):
            return Flow({name: state}, state[index]) if isinstance(index, int) else None
        if len(states) > 1 or not call.values[name].is_tensor:
            return None
        result = self.gives(call, state) if isinstance(state, Sliced) else None
        return None if result is None else Flow({name: state}, result)

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        indexed = index_of(call, source.axis)
        if indexed is None:
            return None
        axis, index = indexed
        if index == slice(None):
            return Sliced(source.layout, axis)
        length = source.layout.length
        bounds = None if length is None else _bounds(index, length)
        layout = None if bounds is None else source.layout.cut(*bounds)
        return None if layout is None else Sliced(layout, axis)

    def function(self, run: OperatorRun, group: Group) -> Function:
        source = run.source
        if not isinstance(source, Sliced):
            return super().function(run, group)
        axis, indexed = source.axis, index_of(run.call, source.axis)
        if indexed is None or indexed[1] == slice(None):
            return super().function(run, group)
        bounds = _bounds(indexed[1], source.layout.total)
        assert bounds is not None
        mine = source.layout.within(group.rank, *bounds)

        def take(x: Tensor, index: object) -> Tensor:
            at = _expanded(index, x.dim())
            place = [i for i, part in enumerate(at) if part is not None][axis]
            return x[(*at[:place], mine, *at[place + 1 :])]

        return take


def _expanded(index: object, dims: int) -> list[Any]:
    """Return an index with a part for every axis: no ellipsis, nothing left out."""
    parts = list(index) if isinstance(index, tuple) else [index]
    missing = dims - sum(1 for part in parts if part is not None and part is not Ellipsis)
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    at = next(i for i, part in enumerate(parts) if part is Ellipsis)
    return [*parts[:at], *[slice(None)] * missing, *parts[at + 1 :]]


def index_of(call: Call, axis: int) -> tuple[int, slice] | None:
    """Return (the axis's place in the result, the slice taken of it); None if it is not a slice."""
    parts = _expanded(call.argument(1, "index"), call.operand.dims)
    if any(not isinstance(part, int | slice | Ref | type(None)) for part in parts):
        return None
    if any(isinstance(part, Ref) and call.values[part.name].holds_tensors for part in parts):
        return None
    old = new = 0
    for part in parts:
        if part is None:
            new += 1
            continue
        if old == axis:
            return (new, part) if isinstance(part, slice) else None
        old, new = old + 1, new + isinstance(part, slice)
    return None


def _bounds(index: slice, total: int) -> tuple[int, int] | None:
    if any(references(index)) or index.step not in (None, 1):
        return None
    start, stop, _ = index.indices(total)
    return (start, stop) if start < stop else None


class Narrow(Rule):
    """``narrow(dim, start, length)``."""

    functions = (torch.narrow,)
    methods = ("narrow",)
    views = methods

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        dim, start, length = _narrowed(call)
        if not isinstance(dim, int):
            return None
        if dim % call.operand.dims != source.axis:
            return source
        if not isinstance(start, int) or not isinstance(length, int):
            return None
        if source.layout.length is None:
            return None
        start %= source.layout.length
        layout = source.layout.cut(start, start + length)
        return None if layout is None else Sliced(layout, source.axis)

    def function(self, run: OperatorRun, group: Group) -> Function:
        source, call = run.source, run.call
        dim, start, length = _narrowed(call)
        if not isinstance(source, Sliced) or not isinstance(dim, int):
            return super().function(run, group)
        if dim % call.operand.dims != source.axis:
            return super().function(run, group)
        assert isinstance(start, int)
        assert isinstance(length, int)
        start %= source.layout.total
        mine = source.layout.within(group.rank, start, start + length)
        return lambda x, *args, **kwargs: x.narrow(dim, mine.start, mine.stop - mine.start)


def _narrowed(call: Call) -> tuple[object, object, object]:
    """Return (axis, start, length); a negative start counts from the end."""
    return call.argument(1, "dim"), call.argument(2, "start"), call.argument(3, "length")


class Splitting(Rule):
    """``chunk``, ``split`` and their kin: each part of a cut axis is cut where the whole is."""

    functions = (torch.chunk, torch.split, torch.tensor_split, torch.unbind)
    methods = ("chunk", "split", "tensor_split", "unbind")
    views = methods

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        (name,) = states
        source, dim = states[name], _split_axis(call)
        count = len(call.result.items)
        if not isinstance(source, Sliced) or dim is None or len(call.operand.sizes) == 0:
            return None
        if dim != source.axis:
            axis = source.axis - (call.title == "unbind" and dim < source.axis)
            return Flow({name: source}, (Sliced(source.layout, axis),) * count)
        sizes = _sizes(call, dim)
        if sizes is None:
            return None
        ends = list(accumulate(sizes))
        layouts = [
            source.layout.cut(end - size, end) for size, end in zip(sizes, ends, strict=True)
        ]
        parts = tuple(Sliced(layout, dim) for layout in layouts if layout is not None)
        return Flow({name: source}, parts) if len(parts) == len(layouts) else None

    def function(self, run: OperatorRun, group: Group) -> Function:
        source, call = run.source, run.call
        dim = _split_axis(call)
        if not isinstance(source, Sliced) or dim != source.axis:
            return super().function(run, group)
        parts = run.target if isinstance(run.target, tuple) else (run.target,)
        mine = [part.layout.counts[group.rank] for part in parts if isinstance(part, Sliced)]
        return lambda x, *args, **kwargs: x.split(mine, dim)


def _split_axis(call: Call) -> int | None:
    position = 1 if call.title == "unbind" else 2
    dim = call.argument(position, "dim", 0)
    return dim % call.operand.dims if isinstance(dim, int) else None


def _sizes(call: Call, dim: int) -> list[int] | None:
    """Return the lengths of the parts along the split axis, where they are always the same."""
    if call.title == "unbind" or not all(item.is_tensor for item in call.result.items):
        return None
    sizes = [item.shape[dim] for item in call.result.items]
    known = [size for size in sizes if size]
    return known if len(known) == len(sizes) else None


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return a copy of *x* after ``x[index] = value``; *x* itself stays."""
    changed = x.clone()
    changed[index] = value
    return changed


class Assignment(Rule):
    """``x[index] = number``: on slices if the index takes all channels."""

    functions = (assigned,)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        name = next(iter(states))
        state = states[name]
        if len(states) > 1 or not isinstance(state, Sliced):
            return None
        indexed = index_of(call, state.axis)
        return Flow({name: state}, state) if indexed and indexed[1] == slice(None) else None
