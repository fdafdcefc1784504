"""Average, maximum and adaptive pooling: channel by channel."""

from torch import nn
from torch.nn import functional as F

from hetmp.ops.call import Call
from hetmp.ops.rule import Rule
from hetmp.state import Sliced, State

_KINDS = ("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool")

_DIMS = {
    dims + 2: tuple(
        getattr(nn, f"{kind}{dims}d") for kind in _KINDS if hasattr(nn, f"{kind}{dims}d")
    )
    for dims in (1, 2, 3)
}

_NAMES = ("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool")


class Pooling(Rule):
    """Spatial axes shrink; channels stay where they are."""

    layers = tuple(layer for layers in _DIMS.values() for layer in layers)
    functions = tuple(
        getattr(F, f"{name}{dims}d")
        for name in _NAMES
        for dims in (1, 2, 3)
        if hasattr(F, f"{name}{dims}d")
    )
    runs_empty = False

    def unfit(self, call: Call) -> str | None:
        asked = call.layer.__dict__ if call.layer is not None else call.kwargs
        return "it gives indices too" if asked.get("return_indices") else None

    def input_dims(self, layer: nn.Module) -> int:
        return next(dims for dims, kinds in _DIMS.items() if type(layer) in kinds)

    def gives(self, call: Call, source: Sliced) -> State | None:
        return source if source.axis == 1 else None
