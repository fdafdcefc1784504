"""What convolutions and linear layers share: they mix channels and follow a scheme."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetmp.ops.rule import Cuts, Rule, Scheme, cut_along
from hetmp.state import State


class Mixing(Rule):
    """A layer with a ``weight`` and perhaps a ``bias``.

    | scheme | forward | who owns the weight |
    | --- | --- | --- |
    | filters | full -> sliced | its output filters |
    | inputs | sliced -> partial | the input channels of every filter |
    | whole | full -> full | everyone, the same |
    """

    mixes = True

    def weight_axis(self, layer: nn.Module, scheme: Scheme) -> int:
        """The weight's axis that *scheme* cuts."""
        raise NotImplementedError

    def cuts(self, layer: nn.Module, scheme: Scheme | None, source: State, target: State) -> Cuts:
        assert scheme is not None
        axis = self.weight_axis(layer, scheme)
        weight = source if scheme == "inputs" else target
        return {
            **cut_along(layer, {"weight": axis}, weight),
            **cut_along(layer, {"bias": 0}, target),
        }

    def local(
        self,
        layer: nn.Module,
        scheme: Scheme | None,
        source: State,
        target: State,
        rank: int,
        device: torch.device,
    ) -> nn.Module:
        local = super().local(layer, scheme, source, target, rank, device)
        return Summand(local) if scheme == "inputs" else local


class Summand(nn.Module):
    """A layer of scheme ``inputs``: it gives a summand of its output, without the bias.

    The bias is owned here and added once, after the reduction, by ``add_bias``.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        self.weight, self.bias = weight, bias
        layer.register_parameter("bias", None)
        layer.register_parameter("weight", None)
        self._layer = (layer,)  # in a tuple: not a submodule, so not in the state_dict
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """The summand: (n, all output channels, ...)."""
        assert self.weight is not None
        given: Tensor = functional_call(self._layer[0], {"weight": self.weight}, (x,))
        return given

    def extra_repr(self) -> str:
        return repr(self._layer[0])


def add_bias(x: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Add a bias along *axis*, as a layer of scheme ``inputs`` wants it after its reduction."""
    return x + bias.view([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
