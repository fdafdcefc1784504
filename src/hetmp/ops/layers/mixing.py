"""Layers that mix channels and follow a scheme: convolutions and linear layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetmp.cluster import Group
from hetmp.core.state import FULL, PARTIAL, L, State
from hetmp.ops.call import OperatorRun
from hetmp.ops.rule import Cuts, Rule, cut_along
from hetmp.ops.schemes import SCHEMES, Scheme, SchemeName


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
        """Return the weight's axis that *scheme* cuts."""
        raise NotImplementedError

    def schemes(self, layer: nn.Module) -> tuple[SchemeName, ...]:
        """Return the schemes that the layer can follow."""
        return tuple(SCHEMES)

    def why_not(self, layer: nn.Module) -> str:
        """Return what of the layer rules out the other schemes, as the end of a sentence."""
        return "has groups"

    def has_bias(self, layer: Any) -> bool:
        """Return whether a bias is added to the output, after the reduction of ``inputs``."""
        return getattr(layer, "bias", None) is not None

    def taken(self, layer: nn.Module, layout: L, axis: int) -> State[L] | None:
        """Return the input state of scheme ``filters``, given the output's layout on *axis*.

        None if the layout cuts what must stay on one rank.
        """
        return FULL

    # --- the layer's own maths in parts; see ``ops/overlap.py``

    def is_plain(self, layer: nn.Module) -> bool:
        """Return whether the three methods below apply to the layer as it is set up."""
        return False

    def compute(self, layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for *x*, this rank's input, with these parameters."""
        raise NotImplementedError

    def input_gradient(self, layer: Any, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of *x*, of which only shape, strides and dtype are read.

        gradient: of the shape of the layer's output on this rank.
        """
        raise NotImplementedError

    def parameter_gradients(
        self, layer: Any, gradient: Tensor, x: Tensor, weight: bool, bias: bool
    ) -> dict[str, Tensor | None]:
        """Return the gradients of the parameters that are wanted, by name.

        gradient: of the shape of the layer's output on this rank; x: its input.
        """
        raise NotImplementedError

    # --- what a rank holds of it

    def cuts(self, run: OperatorRun[L]) -> Cuts[L]:
        assert run.scheme is not None
        axis = self.weight_axis(run.layer, run.scheme)
        weight = run.scheme.share(run)
        return {
            **cut_along(run.layer, {"weight": axis}, weight),
            **cut_along(run.layer, {"bias": 0}, run.owned),
        }

    def stand_in(self, run: OperatorRun) -> Any:
        stand_in = super().stand_in(run)
        if run.target == PARTIAL:  # its bias is added elsewhere
            stand_in.register_parameter("bias", None)
        return stand_in

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        local = super().local(run, group, device)
        return Summand(local) if run.target == PARTIAL else local


class Summand(nn.Module):
    """A layer of scheme ``inputs``, whose output is a summand without the bias.

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
        """Return the summand: (n, all output channels, ...)."""
        assert self.weight is not None
        summand: Tensor = functional_call(self._layer[0], {"weight": self.weight}, (x,))
        return summand

    def extra_repr(self) -> str:
        return repr(self._layer[0])


def add_bias(x: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Add *bias*, (c,), to *x* along *axis*: after the reduction of an ``inputs`` layer."""
    return x + bias.view([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
