"""Convolution and transposed convolution in 1, 2 and 3 dimensions."""

from typing import Any

from torch import nn

from hetmp.ops.mixing import Mixing
from hetmp.ops.rule import Scheme, Shape

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Convolution(Mixing):
    """Weights are (out, in, *kernel), transposed (in, out, *kernel); channels are axis 1."""

    layers = (*_PLAIN, *_TRANSPOSED)

    def refusal(self, layer: Any) -> str | None:
        if layer.groups != 1:
            return f"groups={layer.groups} is not sliced: only groups=1 is"
        return None

    def input_dims(self, layer: Any) -> int:
        return len(layer.kernel_size) + 2

    def input_channels(self, layer: Any) -> int:
        return int(layer.in_channels)

    def output_channels(self, layer: Any) -> int:
        return int(layer.out_channels)

    def shape(self, layer: Any, shape: Shape) -> Shape:
        return (shape[0], layer.out_channels, *[None] * len(layer.kernel_size))

    def weight_axis(self, layer: nn.Module, scheme: Scheme) -> int:
        return int((scheme == "inputs") != isinstance(layer, _TRANSPOSED))

    def resize(self, layer: Any, scheme: Scheme | None, count: int) -> None:
        if scheme == "inputs":
            layer.in_channels = count
        else:
            layer.out_channels = count
