"""Batch normalization: statistics are per channel, so slices need no exchange."""

from typing import Any

from torch import Tensor, nn

from hetmp.ops.rule import Cuts, Idle, Rule, Scheme, Shape, cut_along
from hetmp.state import Sliced, State

_DIMS = {nn.BatchNorm1d: None, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


class BatchNorm(Rule):
    """Parameters and running statistics are cut like the channels."""

    layers = tuple(_DIMS)
    runs_empty = False

    def input_dims(self, layer: nn.Module) -> int | None:
        return next(dims for kind, dims in _DIMS.items() if type(layer) is kind)

    def input_channels(self, layer: Any) -> int:
        return int(layer.num_features)

    def gives(self, layer: nn.Module, source: Sliced, taken: Shape, given: Shape) -> State | None:
        return source if source.axis == 1 else None

    def cuts(self, layer: nn.Module, scheme: Scheme | None, source: State, target: State) -> Cuts:
        names = ("weight", "bias", "running_mean", "running_var")
        return cut_along(layer, dict.fromkeys(names, 0), source)

    def resize(self, layer: Any, scheme: Scheme | None, count: int) -> None:
        layer.num_features = count

    def idle(
        self,
        empty: nn.Module,
        stand_in: Any,
        scheme: Scheme | None,
        source: State,
        target: State,
    ) -> Idle:
        assert isinstance(source, Sliced)
        if stand_in.momentum is None:  # it would look at how many batches there were: on meta
            stand_in.momentum = 0.1
        return _IdleBatchNorm(
            empty, stand_in, narrows=source.axis, empties=source.axis, autocasts=False
        )


class _IdleBatchNorm(Idle):
    """Counts its batches all the same: the count belongs to the layer, not to a channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(self.num_batches_tracked, Tensor):
            self.num_batches_tracked.add_(1)
        return super().forward(x)
