"""Convolutions and linear layers whose weight is computed from the layer's own parameters.

Standardized, scaled and normed weights are computed filter by filter: a rank that holds some
filters holds the same share of what they are computed from.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetmp.cluster import Group
from hetmp.core.partition import Layout, Partition
from hetmp.core.state import FULL, L, Sliced, State
from hetmp.ops.call import Call, Flow, OperatorRun, Ref, Value
from hetmp.ops.idle import Idle, IdleAxes
from hetmp.ops.layers.convolution import Convolution
from hetmp.ops.layers.linear import Linear
from hetmp.ops.layers.mixing import Mixing
from hetmp.ops.own_forward import own_forward
from hetmp.ops.recipe import Computation, Division, Recipe
from hetmp.ops.rule import Cuts
from hetmp.ops.schemes import SCHEMES, Scheme, SchemeName


class Computed(nn.Module):
    """A layer that computes its weight and bias whenever it runs."""

    def __init__(self, owner: nn.Module, plain: nn.Module, recipe: Recipe) -> None:
        """
        Args:
            owner: the module with the parameters and buffers, and with the modules inside it that
                have the others.
            plain: the layer that mixes, on the meta device: it has the shapes of what is computed.
            recipe: what computes its weight and bias.
        """
        super().__init__()
        self._parameters.update(owner._parameters)
        self._buffers.update(owner._buffers)
        self._non_persistent_buffers_set |= owner._non_persistent_buffers_set
        self._modules.update(owner._modules)
        self.recipe, self.computation = recipe, Computation(recipe.divided({}), None)
        self._plain = (plain,)  # in a tuple: not a submodule, so not in the state_dict
        self.kernel_size = getattr(plain, "kernel_size", None)
        self.groups, self.training = getattr(plain, "groups", 1), owner.training

    @property
    def plain(self) -> Any:
        """The layer that mixes, without values."""
        return self._plain[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return what the plain layer returns with this rank's weight and bias."""
        computed = {} if x.is_meta else self.computation(self)
        output: Tensor = functional_call(self.plain, computed, (x,))
        return output

    def extra_repr(self) -> str:
        return f"{self.plain.extra_repr()}, {self.recipe.title}"


COMPUTED = {
    plain: type(f"Computed{plain.__name__}", (Computed,), {})
    for plain in (*Convolution.layers, *Linear.layers)
}
"""The class for every class of layer that mixes: plans and messages name it."""


class ComputedWeight(Mixing[Computed]):
    """All but the parameters is as for the layer that mixes; these are cut as the recipe says.

    Scheme ``inputs`` would cut what filters are computed from.
    """

    layers = tuple(COMPUTED.values())

    def channel_axis(self, layer: Computed, dims: int) -> int:
        return _rule(layer).channel_axis(layer.plain, dims)

    def input_dims(self, layer: Computed) -> int | None:
        return _rule(layer).input_dims(layer.plain)

    def input_channels(self, layer: Computed) -> int | None:
        return _rule(layer).input_channels(layer.plain)

    def output_channels(self, layer: Computed) -> int:
        return _rule(layer).output_channels(layer.plain)

    def groups(self, layer: Computed) -> int:
        return _rule(layer).groups(layer.plain)

    def schemes(self, layer: Computed) -> tuple[SchemeName, ...]:
        return "filters", "batch", "whole"

    def why_not(self, layer: Computed) -> str:
        return "computes its weight"

    def input_state(self, layer: Computed, layout: L, axis: int) -> State[L] | None:
        return _rule(layer).input_state(layer.plain, layout, axis)

    def weight_axis(self, layer: Computed, scheme: Scheme) -> int:
        return _rule(layer).weight_axis(layer.plain, scheme)

    def channels_last(self, layer: Computed, shape: torch.Size) -> bool:
        return _rule(layer).channels_last(layer.plain, shape)

    def tensors(self, layer: Computed) -> tuple[str, ...]:
        return tuple(layer.recipe.tensors.values())

    def cuts(self, run: OperatorRun[L, Computed]) -> Cuts[L]:
        return _division(run).cuts

    def resize(self, layer: Computed, run: OperatorRun[Layout, Computed], count: int) -> None:
        _rule(layer).resize(layer.plain, _plain(run), count)

    def idle(self, layer: Computed, run: OperatorRun[Layout, Computed]) -> None:
        """Let *layer*, which has no filters on this rank, run as an ``Idle`` in *run*."""
        axes, tensors = self.idle_axes(run), self.tensors(run.whole_layer)
        Idle(layer, _rule(run.whole_layer).stand_in(_plain(run)), **axes, tensors=tensors)

    def idle_axes(self, run: OperatorRun[Layout, Computed]) -> IdleAxes:
        return _rule(run.whole_layer).idle_axes(_plain(run))

    def local(
        self, run: OperatorRun[Layout, Computed], group: Group, device: torch.device
    ) -> nn.Module:
        local = super().local(run, group, device)
        assert isinstance(local, Computed)
        if own_forward(local) is None:  # a rank without filters computes nothing
            local.computation = Computation(_division(run), group)
        return local


def is_cut(layer: Computed) -> bool:
    """Return whether ranks with some filters need only these filters' share of most parameters."""
    rule = _rule(layer)
    unit = rule.output_channels(layer.plain) // rule.groups(layer.plain)
    unit = unit if rule.groups(layer.plain) > 1 else 1
    units = rule.output_channels(layer.plain) // unit
    few = units // 3  # unequal shares, which no halves of the filters fit
    output = Sliced(Layout.of(Partition((few, units - few))).scaled(unit))
    source = rule.input_state(layer.plain, output.layout, output.axis)
    assert source is not None
    call: Call[Computed] = Call(layer, (Ref("x"),), {}, {}, Value())
    run: OperatorRun[Layout, Computed] = OperatorRun(
        call, Flow({"x": source}, output), SCHEMES["filters"], output
    )
    sizes, division = layer.recipe.shapes, _division(run)
    cut = sum(sizes[name].numel() for name, state in division.tensors.items() if state != FULL)
    return 2 * cut > sum(size.numel() for size in sizes.values())


def _rule(layer: Computed) -> Mixing[Any]:
    """Return the rule of the layer that mixes."""
    return _LINEAR if isinstance(layer.plain, Linear.layers) else _CONVOLUTION


_CONVOLUTION, _LINEAR = Convolution(), Linear()


def _plain(run: OperatorRun[L, Computed]) -> OperatorRun[L]:
    """Return the run of the layer that mixes."""
    return replace(run, call=replace(run.call, target=run.whole_layer.plain))


def _division(run: OperatorRun[L, Computed]) -> Division[L]:
    """Return how the recipe is followed in a run."""
    return run.whole_layer.recipe.divided(_rule(run.whole_layer).cuts(_plain(run)))
