"""Activation layers: elementwise ones run on slices, those over channels on all of them."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetmp.core.partition import Layout
from hetmp.core.state import L, Sliced, State
from hetmp.ops.call import Call, OperatorRun
from hetmp.ops.rule import Cuts, LayerForm, Rule, cut_along


class Activation(Rule):
    """Elementwise activation layers."""

    layers = (
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Hardshrink,
        nn.Softshrink,
        nn.Tanhshrink,
        nn.Sigmoid,
        nn.LogSigmoid,
        nn.Tanh,
        nn.Softplus,
        nn.Softsign,
        nn.Threshold,
        nn.Identity,
    )
    views = ("Identity",)
    keeps_shape = True
    harmless = (
        *("negative_slope", "alpha", "beta", "threshold", "value", "lambd"),
        *("min_val", "max_val", "approximate"),
    )


def _prelu(weight: Tensor) -> nn.Module:
    return nn.PReLU(weight.numel())


class PReLU(Rule[nn.PReLU]):
    """PReLU: a slope per channel is cut like the channels; a single slope is replicated."""

    layers = (nn.PReLU,)
    by_image = True
    forms: ClassVar = {F.prelu: LayerForm(("input", "weight"), ("weight",), _prelu)}

    def input_channels(self, layer: nn.PReLU) -> int | None:
        return int(layer.num_parameters) if layer.num_parameters > 1 else None

    def gives(self, call: Call[nn.PReLU], source: Sliced[L]) -> State[L] | None:
        return source if source.axis == 1 or call.whole_layer.num_parameters == 1 else None

    def cuts(self, run: OperatorRun[L, nn.PReLU]) -> Cuts[L]:
        slopes = run.whole_layer.num_parameters
        return cut_along(run.layer, {"weight": 0}, run.source) if slopes > 1 else {}

    def resize(self, layer: nn.PReLU, run: OperatorRun[Layout, nn.PReLU], count: int) -> None:
        """Set the slopes of *layer* to *count*, unless all channels of *run*'s layer share one."""
        if run.whole_layer.num_parameters > 1:
            layer.num_parameters = count


class AcrossAxis(Rule):
    """Softmax and the like: every output needs every element of one axis."""

    layers = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
    functions = (F.softmax, F.log_softmax, F.softmin, torch.softmax, torch.log_softmax)
    methods = ("softmax", "log_softmax")

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        dim = call.setting(1, "dim")
        if not isinstance(dim, int) or dim % call.operand.dims == source.axis:
            return None
        return source


class AcrossChannels(Rule):
    """Activations whose outputs need channels of other ranks."""

    layers = (nn.Softmax2d, nn.LocalResponseNorm, nn.CrossMapLRN2d)
    by_image = True
    functions = (F.local_response_norm,)

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        return None


class Gating(Rule):
    """Where the halved axis is cut, both halves are cut alike, so that each rank has its gates."""

    layers = (nn.GLU,)
    functions = (F.glu,)

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        dim = call.setting(1, "dim", -1)
        if not isinstance(dim, int):
            return None
        if dim % call.operand.dims != source.axis:
            return source
        half = source.layout.folded(2)
        return None if half is None else Sliced(half, source.axis)
