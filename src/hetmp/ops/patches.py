"""Patches of an image as columns, and back: a channel's pixels under the window stay together."""

from typing import Any

from torch import nn
from torch.nn import functional as F

from hetmp.ops.call import Call
from hetmp.ops.spare import Spared
from hetmp.state import Sliced, State


class Patches(Spared):
    """(n, c, h, w) -> (n, c * window, patches): each channel becomes a block; or the way back."""

    layers = (nn.Unfold, nn.Fold)
    functions = (F.unfold, F.fold)

    def gives(self, call: Call, source: Sliced) -> State | None:
        taken, given = call.taken.sizes[0], call.given.sizes[0]
        if source.axis != 1 or len(taken) + len(given) != 7:
            return None  # a single image has no batch axis
        if len(taken) == 4:
            return Sliced(source.layout.scaled(given[1] // taken[1]), 1)
        layout: Any = source.layout.grouped(taken[1] // given[1])
        return None if layout is None else Sliced(layout, 1)

    def spare_width(self, call: Call) -> int:
        """How many indices of the channel axis one channel takes up."""
        return max(1, call.taken.sizes[0][1] // call.given.sizes[0][1])
