"""Layers that mix channels and follow a scheme: convolutions and linear layers."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.core.state import FULL, PARTIAL, L, State
from hetmp.ops.call import OperatorRun
from hetmp.ops.idle import Idle
from hetmp.ops.own_forward import Follower, OwnForward, own_forward
from hetmp.ops.rule import Cuts, M, Rule, cut_along
from hetmp.ops.schemes import SCHEMES, Scheme, SchemeName


class Mixing(Rule[M]):
    """A layer with a ``weight`` and perhaps a ``bias``.

    | scheme | forward | who owns the weight |
    | --- | --- | --- |
    | filters | full -> sliced | its output filters |
    | inputs | sliced -> partial | the input channels of every filter |
    | batch | sliced along the batch -> the same | everyone, the same |
    | whole | full -> full | everyone, the same |
    """

    mixes = True

    def weight_axis(self, layer: M, scheme: Scheme) -> int:
        """Return the weight's axis that *scheme* cuts."""
        raise NotImplementedError

    def schemes(self, layer: M) -> tuple[SchemeName, ...]:
        """Return the schemes that the layer can follow."""
        return tuple(SCHEMES)

    def why_not(self, layer: M) -> str:
        """Return what of the layer rules out the other schemes, as the end of a sentence."""
        return "has groups"

    def has_bias(self, layer: M) -> bool:
        """Return whether a bias is added to the output, after the reduction of ``inputs``."""
        return getattr(layer, "bias", None) is not None

    def input_state(self, layer: M, layout: L, axis: int) -> State[L] | None:
        """Return the input state of *layer* in scheme ``filters``, by the *layout* of the output.

        *layout* is that of the output's channels, on *axis*. None if it cuts what must stay on one
        rank.
        """
        return FULL

    # --- the layer's own maths in parts; see ``ops/overlap.py``

    def is_plain(self, layer: M) -> bool:
        """Return whether the three methods below apply to the layer as it is set up."""
        return False

    def compute(self, layer: M, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output of *layer* for *x*, this rank's input.

        *weight* and *bias* take the place of the layer's own; no bias if None.
        """
        raise NotImplementedError

    def input_gradient(self, layer: M, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of *x*, of which only shape, strides and dtype are read.

        gradient: of the shape of the output of *layer* on this rank. weight: the layer's.
        """
        raise NotImplementedError

    def parameter_gradients(
        self, layer: M, gradient: Tensor, x: Tensor, weight: bool, bias: bool
    ) -> dict[str, Tensor | None]:
        """Return the gradients of the parameters that are wanted, by name.

        gradient: of the shape of the output of *layer* on this rank; x: its input. weight, bias:
        whether the gradient of each is wanted.
        """
        raise NotImplementedError

    # --- what a rank holds of it

    def cuts(self, run: OperatorRun[L, M]) -> Cuts[L]:
        assert run.scheme is not None
        layer = run.whole_layer
        axis = self.weight_axis(layer, run.scheme)
        weight = run.scheme.share(run)
        return {
            **cut_along(layer, {"weight": axis}, weight),
            **cut_along(layer, {"bias": 0}, run.owned),
        }

    def stand_in(self, run: OperatorRun[Layout, M]) -> M:
        stand_in = super().stand_in(run)
        if run.target == PARTIAL:  # its bias is added elsewhere
            stand_in.register_parameter("bias", None)
        return stand_in

    def local(self, run: OperatorRun[Layout, M], group: Group, device: torch.device) -> nn.Module:
        """Return this rank's share of the layer: it runs as a ``Summand`` where it gives a part.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        local = super().local(run, group, device)
        if run.target == PARTIAL and own_forward(local) is None:
            Summand(local)
        return local

    def idle(self, layer: M, run: OperatorRun[Layout, M]) -> None:
        """Let *layer*, which has no channels on this rank, run as an ``Idle`` in *run*."""
        # A bias that is added elsewhere takes part there, on all ranks alike.
        tensors = ("weight",) if run.target == PARTIAL else None
        Idle(layer, self.stand_in(run), **self.idle_axes(run), tensors=tensors)


class Summand(OwnForward):
    """What a layer of scheme ``inputs`` runs: its output is a summand without the bias.

    The layer owns the bias, which is added once, after the reduction, by ``add_bias``.
    """

    def __init__(self, layer: nn.Module) -> None:
        bare = copy.copy(layer)
        bare._parameters = dict.fromkeys(layer._parameters)
        self._bare = Follower(layer, bare)
        super().__init__(layer)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the summand: (n, all output channels, ...)."""
        self._bare.follow()
        summand: Tensor = functional_call(self._bare.copy, {"weight": self.layer.weight}, (x,))
        return summand


def add_bias(x: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Add *bias*, (c,), to *x* along *axis*: after the reduction of an ``inputs`` layer."""
    return x + bias.view([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
