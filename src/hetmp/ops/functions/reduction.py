"""Reductions, sorting and running sums: what works along some axes."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from hetmp.cluster import Group
from hetmp.core.state import PARTIAL, L, Sliced, State, States
from hetmp.ops.call import Call, Flow, Function, OperatorRun
from hetmp.ops.functions.elementwise import Elementwise
from hetmp.ops.rule import Rule

_SUMS = ("sum", "mean")
_NAMES = (*_SUMS, "amax", "amin", "std", "var", "norm", "logsumexp", "prod", "all", "any")


class Reduction(Rule):
    """Reductions: over other axes, slices stay slices; a sum over the cut axis is a summand."""

    functions = tuple(getattr(torch, name) for name in _NAMES)
    methods = _NAMES

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        axes = _reduced_axes(call)
        if axes is None:
            return None
        if source.axis in axes:
            return PARTIAL if call.title in _SUMS else None
        if call.result.dims == call.operand.dims:
            return source
        return Sliced(source.layout, source.axis - sum(axis < source.axis for axis in axes))

    def function(self, run: OperatorRun, group: Group) -> Function:
        source = run.source
        if run.target != PARTIAL or run.call.title == "sum" or not isinstance(source, Sliced):
            return super().function(run, group)
        layout = source.layout

        def mean(*args: object, **kwargs: object) -> object:
            part = layout.counts[group.rank] / layout.total
            if not part:  # the mean of no elements is not a number; their sum has its shape
                return torch.sum(*args, **kwargs)  # type: ignore[call-overload]
            return run.call.invoke(args, kwargs) * part

        return mean


def _reduced_axes(call: Call) -> list[int] | None:
    """Return the axes that are reduced; None if they are not known before it runs."""
    position = 2 if call.title == "norm" else 1
    asked = call.argument(position, "dim", call.kwargs.get("axis"))
    dims = call.operand.dims
    if call.title in ("std", "var") and isinstance(asked, bool):
        return None
    if asked is None:
        return list(range(dims))
    axes = list(asked) if isinstance(asked, tuple | list) else [asked]
    known = [axis % dims for axis in axes if isinstance(axis, int)]
    return (known or list(range(dims))) if len(known) == len(axes) else None


_FIRST = """
argmax argmin max min median nanmedian sort argsort cumsum cumprod cummax cummin logcumsumexp
var_mean std_mean count_nonzero flip unfold
"""
_SECOND = "topk kthvalue roll diff"
_LAST_BY_DEFAULT = "sort argsort topk kthvalue diff"

_PLACES = {
    **dict.fromkeys(_FIRST.split(), 1),
    **dict.fromkeys(_SECOND.split(), 2),
    "normalize": 2,
    "linalg_vector_norm": 2,
}
"""Which argument names the axes."""


class Along(Rule):
    """Operations along some axes: slices stay slices where the cut axis is not one of them."""

    functions = (
        *(getattr(torch, name) for name in _PLACES if hasattr(torch, name)),
        F.normalize,
        torch.linalg.vector_norm,
    )
    methods = tuple(name for name in _PLACES if hasattr(Tensor, name))
    views = ("unfold",)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        if len(states) != 1:
            pair = call.title in ("max", "min") and len(call.args) + len(call.kwargs) == 2
            return Elementwise().flow(call, states) if pair else None
        flow = super().flow(call, states)
        if flow is None or not call.result.items:
            return flow
        return Flow(flow.wants, (cast(State[L], flow.gives),) * len(call.result.items))

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        axes = _axes_along(call)
        if axes is None or source.axis in axes:
            return None
        result = call.result.items[0] if call.result.items else call.result
        dropped = result.dims < call.operand.dims
        return Sliced(source.layout, source.axis - dropped * sum(a < source.axis for a in axes))


def _axes_along(call: Call) -> list[int] | None:
    """Return the axes along which it works; None if they are not known, or all of them."""
    place = _PLACES[call.title]
    default = -1 if call.title in _LAST_BY_DEFAULT.split() else None
    default = 1 if call.title == "normalize" else default
    names = [name for name in ("dim", "dims", "axis", "dimension") if name in call.kwargs]
    asked = call.kwargs[names[0]] if names else call.argument(place, "", default)
    if call.title == "flip" and call.args[1:] and isinstance(asked, int):
        asked = call.args[1:]  # x.flip(2, 3)
    axes = list(asked) if isinstance(asked, tuple | list) else [asked]
    known = [axis for axis in axes if isinstance(axis, int) and not isinstance(axis, bool)]
    return [axis % call.operand.dims for axis in known] if len(known) == len(axes) > 0 else None
