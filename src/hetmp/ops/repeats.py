"""Repetition: of whole axes, and of each index in its place."""

from typing import Any

import torch

from hetmp.ops.call import Call
from hetmp.ops.rule import Rule
from hetmp.state import Sliced, State


class Repeat(Rule):
    """A cut axis that is repeated whole is joined with itself, as ``cat`` would."""

    functions = (torch.tile,)
    methods = ("repeat", "tile")

    def gives(self, call: Call, source: Sliced) -> State | None:
        asked = call.args[1:] or tuple(call.kwargs.values())
        sizes = asked[0] if len(asked) == 1 and isinstance(asked[0], tuple | list) else asked
        from_right = source.axis - call.taken.dims
        times = sizes[from_right] if len(sizes) >= -from_right else 1
        if not isinstance(times, int) or times < 1:
            return None
        layout: Any = type(source.layout).joined([source.layout] * times)
        return Sliced(layout, call.given.dims + from_right)


class RepeatInterleave(Rule):
    """Each index of a cut axis becomes a block of its repetitions."""

    functions = (torch.repeat_interleave,)
    methods = ("repeat_interleave",)

    def gives(self, call: Call, source: Sliced) -> State | None:
        times, dim = call.argument(1, "repeats"), call.argument(2, "dim")
        if not isinstance(times, int) or not isinstance(dim, int):
            return None
        if dim % call.taken.dims != source.axis:
            return source
        if times < 1 or call.kwargs.get("output_size") is not None:
            return None
        return Sliced(source.layout.scaled(times), source.axis)
