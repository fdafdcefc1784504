"""Convolution and transposed convolution in 1, 2 and 3 dimensions, with any number of groups."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hetmp.core.partition import Layout
from hetmp.core.state import FULL, L, Sliced, State
from hetmp.ops.call import OperatorRun
from hetmp.ops.idle import IdleAxes
from hetmp.ops.layers.mixing import Mixing
from hetmp.ops.rule import Cuts, LayerForm, cut_along, sized
from hetmp.ops.schemes import Scheme, SchemeName

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

FEW_PIXELS = 16
"""Images no larger are faster channel by channel: see ``docs/performance.md``."""


def has_many_pixels(shape: Sequence[int]) -> bool:
    """Return whether images of shape (n, c, h, w) run faster as channels_last."""
    return shape[-2] * shape[-1] > FEW_PIXELS


def _form(kind: type[nn.Module], transposed: bool) -> LayerForm:
    settings = ("stride", "padding", "output_padding", "groups", "dilation")
    plain = ("stride", "padding", "dilation", "groups")

    def make(weight: Tensor, bias: Tensor | None, groups: int = 1, **how: object) -> nn.Module:
        first, second = weight.shape[:2]
        channels = (first, second * groups) if transposed else (second * groups, first)
        return kind(*channels, tuple(weight.shape[2:]), groups=groups, bias=bias is not None, **how)

    arguments = ("input", "weight", "bias", *(settings if transposed else plain))
    return LayerForm(arguments, ("weight", "bias"), make)


class Convolution(Mixing[_ConvNd]):
    """Convolutions: weights (out, in / groups, *kernel), transposed (in, out / groups, *kernel).

    Groups (a depthwise convolution has one per channel) keep channels apart: scheme ``filters``
    then takes and gives slices, whose ends fall on the ends of groups, and moves nothing.
    """

    layers = (*_PLAIN, *_TRANSPOSED)
    forms: ClassVar = {
        getattr(torch, f"conv{kind}{dims}d"): _form(layer, transposed=bool(kind))
        for kind, classes in (("", _PLAIN), ("_transpose", _TRANSPOSED))
        for dims, layer in enumerate(classes, start=1)
    }

    def groups(self, layer: _ConvNd) -> int:
        return int(layer.groups)

    def input_dims(self, layer: _ConvNd) -> int:
        return len(layer.kernel_size) + 2

    def input_channels(self, layer: _ConvNd) -> int:
        return int(layer.in_channels)

    def output_channels(self, layer: _ConvNd) -> int:
        return int(layer.out_channels)

    def schemes(self, layer: _ConvNd) -> tuple[SchemeName, ...]:
        return super().schemes(layer) if layer.groups == 1 else ("filters", "batch", "whole")

    def input_state(self, layer: _ConvNd, layout: L, axis: int) -> State[L] | None:
        if layer.groups == 1:
            return FULL
        groups = layout.grouped(layer.out_channels // layer.groups)
        if groups is None:
            return None
        return Sliced(groups.scaled(layer.in_channels // layer.groups), axis)

    def weight_axis(self, layer: _ConvNd, scheme: Scheme) -> int:
        return int(scheme.cuts_inputs != isinstance(layer, _TRANSPOSED))

    def cuts(self, run: OperatorRun[L, _ConvNd]) -> Cuts[L]:
        layer = run.whole_layer
        if layer.groups == 1:
            return super().cuts(run)
        weight = run.source if isinstance(layer, _TRANSPOSED) else run.target
        return {
            **cut_along(layer, {"weight": 0}, weight),
            **cut_along(layer, {"bias": 0}, run.target),
        }

    def resize(self, layer: _ConvNd, run: OperatorRun[Layout, _ConvNd], count: int) -> None:
        """Set the channels and groups of *layer* to *count* input or output channels.

        Which of the two, the scheme of the *run* says.
        """
        whole = run.whole_layer
        if whole.groups > 1:
            layer.groups = count * whole.groups // whole.out_channels
            layer.in_channels = layer.groups * (whole.in_channels // whole.groups)
            layer.out_channels = count
        elif run.scheme is not None and run.scheme.cuts_inputs:
            layer.in_channels = count
        else:
            layer.out_channels = count

    def stand_in(self, run: OperatorRun[Layout, _ConvNd]) -> _ConvNd:
        layer = run.whole_layer
        if layer.groups == 1:
            return super().stand_in(run)
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        counts = {"weight": inputs if isinstance(layer, _TRANSPOSED) else outputs, "bias": outputs}
        stand_in = sized(layer, self.cuts(run), counts, torch.device("meta"))
        self.resize(stand_in, run, outputs)
        return stand_in

    def idle_axes(self, run: OperatorRun[Layout, _ConvNd]) -> IdleAxes:
        whole = run.whole_layer
        width = whole.in_channels // whole.groups if whole.groups > 1 else 1
        return {**super().idle_axes(run), "width": width}

    def is_plain(self, layer: _ConvNd) -> bool:
        known = isinstance(layer, (*_PLAIN, *_TRANSPOSED))
        return known and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)

    def compute(self, layer: _ConvNd, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output of *layer* for *x*, (n, c, *spatial), this rank's input.

        *weight* and *bias* take the place of the layer's own; no bias if None.
        """
        return torch.convolution(x, weight, bias, *_setting(layer))

    def input_gradient(self, layer: _ConvNd, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of *x*, (n, c, *spatial); see ``Mixing.input_gradient``.

        *gradient* is that of the output of *layer*; *weight* is its weight.
        """
        wanted = [True, False, False]
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *_setting(layer), wanted
        )[0]
        return result

    def parameter_gradients(
        self, layer: _ConvNd, gradient: Tensor, x: Tensor, weight: bool, bias: bool
    ) -> dict[str, Tensor | None]:
        """Return the gradients of the *weight* and *bias* that are wanted, by name.

        *layer*, *gradient* and *x* are as in ``Mixing.parameter_gradients``.
        """
        sizes, wanted = [layer.out_channels], [False, weight, bias]
        gradients = torch.ops.aten.convolution_backward(
            gradient, x, layer.weight, sizes, *_setting(layer), wanted
        )
        return {"weight": gradients[1], "bias": gradients[2]}

    def channels_last(self, layer: _ConvNd, shape: torch.Size) -> bool:
        if not isinstance(layer, nn.Conv2d):
            return False
        return math.prod(layer.kernel_size) == 1 or has_many_pixels(shape)


def _setting(
    layer: _ConvNd,
) -> tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]:
    """Return (stride, padding, dilation, transposed, output padding, groups) of a plain layer."""
    assert not isinstance(layer.padding, str)
    transposed = isinstance(layer, _TRANSPOSED)
    output_padding = layer.output_padding if transposed else (0,) * len(layer.stride)
    return layer.stride, layer.padding, layer.dilation, transposed, output_padding, layer.groups
