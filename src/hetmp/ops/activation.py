"""Activation functions: elementwise ones run on slices, those over channels on all of them."""

from typing import Any

from torch import nn

from hetmp.ops.rule import Cuts, Rule, Scheme, Shape, cut_along
from hetmp.state import Sliced, State


class Elementwise(Rule):
    """Every element for itself."""

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


class PReLU(Rule):
    """One slope per channel is cut like the channels; a single slope is replicated."""

    layers = (nn.PReLU,)

    def input_channels(self, layer: Any) -> int | None:
        return int(layer.num_parameters) if layer.num_parameters > 1 else None

    def gives(self, layer: Any, source: Sliced, taken: Shape, given: Shape) -> State | None:
        return source if source.axis == 1 or layer.num_parameters == 1 else None

    def cuts(self, layer: Any, scheme: Scheme | None, source: State, target: State) -> Cuts:
        return cut_along(layer, {"weight": 0}, source) if layer.num_parameters > 1 else {}

    def resize(self, layer: Any, scheme: Scheme | None, count: int) -> None:
        if layer.num_parameters > 1:
            layer.num_parameters = count


class AcrossChannels(Rule):
    """Softmax and its kin: every output needs every channel."""

    layers = (nn.Softmax, nn.LogSoftmax, nn.Softmin)

    def refusal(self, layer: Any) -> str | None:
        if layer.dim is None:
            return "dim is not set: say which axis it normalises, for example dim=1"
        return None

    def gives(self, layer: nn.Module, source: Sliced, taken: Shape, given: Shape) -> State | None:
        return None
