"""Average, maximum and adaptive pooling: channel by channel."""

from typing import Any

from torch import nn

from hetmp.ops.rule import Rule, Shape
from hetmp.state import Sliced, State

_DIMS = {
    dims + 2: tuple(
        getattr(nn, f"{kind}{dims}d")
        for kind in ("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
        if hasattr(nn, f"{kind}{dims}d")
    )
    for dims in (1, 2, 3)
}


class Pooling(Rule):
    """Spatial axes shrink; channels stay where they are."""

    layers = tuple(layer for layers in _DIMS.values() for layer in layers)
    runs_empty = False

    def refusal(self, layer: Any) -> str | None:
        if getattr(layer, "return_indices", False):
            return "return_indices=True gives two outputs: only one can be sliced"
        return None

    def input_dims(self, layer: nn.Module) -> int:
        return next(dims for dims, kinds in _DIMS.items() if type(layer) in kinds)

    def shape(self, layer: nn.Module, shape: Shape) -> Shape:
        return (*shape[:2], *[None] * len(shape[2:]))

    def gives(self, layer: nn.Module, source: Sliced, taken: Shape, given: Shape) -> State | None:
        return source if source.axis == 1 else None
