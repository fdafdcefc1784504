"""Average, maximum and adaptive pooling: channel by channel; and what undoes the maximum."""

from typing import cast

from torch import nn
from torch.nn import functional as F

from hetmp.core.state import L, Sliced, State, States
from hetmp.ops.call import Call, Flow
from hetmp.ops.labelled import Labelled, tensor_names
from hetmp.ops.spared import Spared

_KINDS = ("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool")

_DIMS = {
    dims + 2: tuple(
        getattr(nn, f"{kind}{dims}d") for kind in _KINDS if hasattr(nn, f"{kind}{dims}d")
    )
    for dims in (1, 2, 3)
}

_NAMES = (
    "max_pool{}d avg_pool{}d lp_pool{}d adaptive_max_pool{}d adaptive_avg_pool{}d "
    "max_pool{}d_with_indices adaptive_max_pool{}d_with_indices"
)

_FUNCTIONS = {
    getattr(F, name.format(dims)): dims
    for name in _NAMES.split()
    for dims in (1, 2, 3)
    if hasattr(F, name.format(dims))
}
"""How many spatial axes each has."""


class Pooling(Spared):
    """Pooling: spatial axes shrink; channels, also of returned indices, stay where they are."""

    by_image = True
    layers = tuple(layer for layers in _DIMS.values() for layer in layers)
    functions = tuple(_FUNCTIONS)
    runs_empty = False

    def input_dims(self, layer: nn.Module) -> int:
        return next(dims for dims, kinds in _DIMS.items() if type(layer) in kinds)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        flow = super().flow(call, states)
        if flow is None or not call.result.items:
            return flow
        return Flow(flow.wants, (cast(State[L], flow.gives),) * len(call.result.items))

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        spatial = _FUNCTIONS.get(call.target, call.operand.dims - 2)
        return source if source.axis == call.operand.dims - spatial - 1 else None

    def spare_width(self, call: Call) -> int | None:
        return 1 if call.result.items else None


_UNPOOLING_FUNCTIONS = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
_UNPOOLING_LAYERS = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)


class Unpooling(Spared):
    """Max unpooling: values and indices are cut alike.

    An index counts within a channel's own plane.
    """

    layers = _UNPOOLING_LAYERS
    functions = _UNPOOLING_FUNCTIONS
    several = True

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        names = tensor_names(call, call.argument(0, "input"), call.argument(1, "indices"))
        if names is None or set(names) != set(states):
            return None
        if call.layer is not None:
            spatial = 1 + _UNPOOLING_LAYERS.index(type(call.layer))
        else:
            spatial = 1 + _UNPOOLING_FUNCTIONS.index(call.target)
        channel_labels = list("nc")[2 + spatial - call.result.dims :]
        labels = [*channel_labels, *range(spatial)]
        labelled = Labelled([(name, labels) for name in names], [*channel_labels, *"zyx"[:spatial]])
        return labelled.flow(call, states)
