"""Reductions: over space on slices; sums and means over channels into summands."""

from collections.abc import Callable
from typing import Any

import torch

from hetmp.comm import Group
from hetmp.ops.call import Call, Run
from hetmp.ops.rule import Rule
from hetmp.state import PARTIAL, Sliced, State

_SUMS = ("sum", "mean")
_NAMES = (*_SUMS, "amax", "amin", "std", "var", "norm", "logsumexp", "prod", "all", "any")


class Reduction(Rule):
    """Over other axes, channels keep apart; a sum over them is a summand of the whole one."""

    functions = tuple(getattr(torch, name) for name in _NAMES)
    methods = _NAMES

    def gives(self, call: Call, source: Sliced) -> State | None:
        axes = _axes(call)
        if axes is None:
            return None
        if source.axis in axes:
            return PARTIAL if call.title in _SUMS else None
        if call.given.dims == call.taken.dims:
            return source
        return Sliced(source.layout, source.axis - sum(axis < source.axis for axis in axes))

    def function(self, run: Run, group: Group) -> Callable[..., Any]:
        source = run.source
        if run.target != PARTIAL or run.call.title == "sum" or not isinstance(source, Sliced):
            return super().function(run, group)
        part = source.layout.counts[group.rank] / source.layout.total
        if not part:
            return torch.sum  # the mean of no elements is not a number; their sum has its shape
        return lambda *args, **kwargs: run.call.invoke(args, kwargs) * part


def _axes(call: Call) -> list[int] | None:
    """The axes that are reduced; None if they are not known before it runs."""
    position = 2 if call.title == "norm" else 1
    asked = call.argument(position, "dim", call.kwargs.get("axis"))
    dims = call.taken.dims
    if call.title in ("std", "var") and isinstance(asked, bool):
        return None
    if asked is None:
        return list(range(dims))
    axes = list(asked) if isinstance(asked, tuple | list) else [asked]
    if not all(isinstance(axis, int) for axis in axes):
        return None
    return [axis % dims for axis in axes] or list(range(dims))
