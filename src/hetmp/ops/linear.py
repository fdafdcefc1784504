"""Fully connected layers."""

from typing import Any

from torch import nn

from hetmp.ops.mixing import Mixing
from hetmp.ops.rule import Scheme, Shape


class Linear(Mixing):
    """Weights are (out, in); features are the last axis."""

    layers = (nn.Linear,)

    def channel_axis(self, layer: nn.Module, dims: int) -> int:
        return dims - 1

    def input_channels(self, layer: Any) -> int:
        return int(layer.in_features)

    def output_channels(self, layer: Any) -> int:
        return int(layer.out_features)

    def shape(self, layer: Any, shape: Shape) -> Shape:
        return (*shape[:-1], layer.out_features)

    def weight_axis(self, layer: nn.Module, scheme: Scheme) -> int:
        return int(scheme == "inputs")

    def resize(self, layer: Any, scheme: Scheme | None, count: int) -> None:
        if scheme == "inputs":
            layer.in_features = count
        else:
            layer.out_features = count
