"""Flattening: channel order survives, so a slice of channels becomes a slice of features."""

import math
from typing import Any

from torch import nn

from hetmp.ops.rule import Rule, Shape
from hetmp.state import Sliced, State


class Flatten(Rule):
    """(n, c, h, w) -> (n, c*h*w): each channel becomes a block of h*w neighbouring features."""

    layers = (nn.Flatten,)

    def shape(self, layer: Any, shape: Shape) -> Shape:
        first, last = _range(layer, shape)
        merged = shape[first : last + 1]
        known = [size for size in merged if size is not None]
        size = math.prod(known) if len(known) == len(merged) else None
        return (*shape[:first], size, *shape[last + 1 :])

    def gives(self, layer: Any, source: Sliced, taken: Shape, given: Shape) -> State | None:
        first, last = _range(layer, taken)
        if source.axis < first:
            return source
        if source.axis > last:
            return Sliced(source.layout, source.axis - (last - first))
        size = given[first]
        # Where the channels are not the slowest of the merged axes, a slice would be scattered;
        # where the sizes are not known, neither is the block.
        if source.axis != first or size is None:
            return None
        return Sliced(source.layout.scaled(size // source.layout.total), first)


def _range(layer: Any, shape: Shape) -> tuple[int, int]:
    return layer.start_dim % len(shape), layer.end_dim % len(shape)
