"""Fully connected layers."""

from typing import Any

from torch import nn

from hetmp.ops.call import Run, Scheme
from hetmp.ops.mixing import Mixing


class Linear(Mixing):
    """Weights are (out, in); features are the last axis."""

    layers = (nn.Linear,)

    def channel_axis(self, layer: nn.Module, dims: int) -> int:
        return dims - 1

    def input_channels(self, layer: Any) -> int:
        return int(layer.in_features)

    def output_channels(self, layer: Any) -> int:
        return int(layer.out_features)

    def weight_axis(self, layer: nn.Module, scheme: Scheme) -> int:
        return int(scheme == "inputs")

    def resize(self, layer: Any, run: Run, count: int) -> None:
        if run.scheme == "inputs":
            layer.in_features = count
        else:
            layer.out_features = count
