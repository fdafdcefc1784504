"""Operations that move, add, drop or stretch axes: the cut axis goes where it is sent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hetmp.cluster import Group
from hetmp.core.state import L, Sliced, State
from hetmp.ops.call import Call, Function, OperatorRun
from hetmp.ops.rule import Rule


class Axes(Rule):
    """Permutations, ``squeeze`` and ``unsqueeze``.

    Where the cut axis ends up is read from an example whose axes all have another length.
    """

    functions = (
        torch.permute,
        torch.transpose,
        torch.swapaxes,
        torch.movedim,
        torch.squeeze,
        torch.unsqueeze,
        torch.t,
    )
    methods = (
        "permute",
        "transpose",
        "swapaxes",
        "swapdims",
        "movedim",
        "squeeze",
        "unsqueeze",
        "t",
    )
    views = methods

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        if call.title == "squeeze" and source.axis in _squeezed(call):
            return None  # it would drop the cut axis where a rank holds one index of it
        marked = [1 if size == 1 else 2 for size in call.operand.sizes[0]]
        marked[source.axis] = 3
        try:
            moved = call.invoke((torch.empty(marked, device="meta"), *call.args[1:]), call.kwargs)
        except (TypeError, RuntimeError):
            return None  # the axes are not known before it runs
        return Sliced(source.layout, list(moved.shape).index(3)) if 3 in moved.shape else None


def _squeezed(call: Call) -> list[int]:
    """Return the axes that ``squeeze`` drops if they have one element; all if none are named."""
    asked = call.argument(1, "dim")
    axes = list(asked) if isinstance(asked, tuple | list) else [asked]
    known = [axis % call.operand.dims for axis in axes if isinstance(axis, int)]
    return known if len(known) == len(axes) else list(range(call.operand.dims))


class Expand(Rule):
    """``expand``: axes of one element are stretched; the cut axis keeps its length."""

    methods = ("expand",)
    views = methods

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        axis = source.axis + call.result.dims - call.operand.dims
        length = source.layout.length
        keeps_length = call.result.shape[axis] == length and length != 1
        return Sliced(source.layout, axis) if keeps_length else None

    def function(self, run: OperatorRun, group: Group) -> Function:
        target = run.target
        if not isinstance(target, Sliced):
            return super().function(run, group)

        def expand(x: Tensor, *sizes: object, size: Sequence[int] = ()) -> Tensor:
            asked = list(size or (sizes[0] if isinstance(sizes[0], tuple | list) else sizes))
            asked[target.axis] = -1
            return x.expand(asked)

        return expand
