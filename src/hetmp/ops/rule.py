"""What every family of operators tells hetmp about itself, and the layer of a rank with nothing."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hetmp.exchange import save_token
from hetmp.state import Sliced, State

Scheme = Literal["filters", "inputs", "whole"]
"""What a channel-mixing layer does with the states (see ``docs/idea.md``)."""

SCHEMES: tuple[Scheme, ...] = ("filters", "inputs", "whole")

Shape = tuple[int | None, ...]
"""The sizes of an activation, batch first; None where they are not known before it runs."""

Cuts = Mapping[str, Sliced]
"""Which axis of which parameter or buffer of a layer is cut, and how; the others are whole."""


class Rule:
    """One family of operators: its axis rule, the states it takes and gives, its local maths.

    A layer either mixes channels, and then follows a scheme, or works channel by channel, and
    then runs on slices as it stands where ``gives`` says so. A new operator is a new rule.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]]
    """The exact classes that the rule speaks for."""

    mixes: ClassVar[bool] = False
    """Whether every output channel depends on every input channel."""

    runs_empty: ClassVar[bool] = True
    """Whether torch runs the operator on an activation of zero channels."""

    def refusal(self, layer: nn.Module) -> str | None:
        """Why this layer cannot be sliced for the way it is set up, or None."""
        return None

    def channel_axis(self, layer: nn.Module, dims: int) -> int:
        """The axis of an activation of *dims* dimensions that the layer takes for channels."""
        return 1

    def input_dims(self, layer: nn.Module) -> int | None:
        """How many dimensions a batched input must have, or None if several will do."""
        return None

    def input_channels(self, layer: nn.Module) -> int | None:
        """How many channels the layer demands, or None if any number will do."""
        return None

    def output_channels(self, layer: nn.Module) -> int:
        """How many channels a mixing layer gives: the axis that its plan cuts."""
        raise NotImplementedError

    def shape(self, layer: nn.Module, shape: Shape) -> Shape:
        """The output's shape, as far as it follows from the input's."""
        return shape

    def gives(self, layer: nn.Module, source: Sliced, taken: Shape, given: Shape) -> State | None:
        """The state that a channel-wise layer makes of slices; None if it needs all channels."""
        return source

    def cuts(self, layer: nn.Module, scheme: Scheme | None, source: State, target: State) -> Cuts:
        """Where the layer's parameters and buffers are cut, given its states.

        *target* is the state after the reduction where the scheme is ``inputs``.
        """
        return {}

    def resize(self, layer: Any, scheme: Scheme | None, count: int) -> None:
        """Set the layer's own size attributes to *count* channels on this rank."""

    def local(
        self,
        layer: nn.Module,
        scheme: Scheme | None,
        source: State,
        target: State,
        rank: int,
        device: torch.device,
    ) -> nn.Module:
        """This rank's share of *layer*: uninitialised parameters of its share's sizes.

        *layer* is on the meta device. A rank whose share has no channels gets an ``Idle``.
        """
        cuts = self.cuts(layer, scheme, source, target)
        share = source if scheme == "inputs" or not self.mixes else target
        counts = {name: cut.layout.counts[rank] for name, cut in cuts.items()}
        if not isinstance(share, Sliced):
            return sized(layer, cuts, counts, device)
        count = share.layout.counts[rank]
        if count == 0 and not (self.runs_empty and not self.mixes):
            stand_in = sized(layer, cuts, dict.fromkeys(cuts, 1), torch.device("meta"))
            self.resize(stand_in, scheme, 1)
            return self.idle(sized(layer, cuts, counts, device), stand_in, scheme, source, target)
        local = sized(layer, cuts, counts, device)
        self.resize(local, scheme, count)
        return local

    def idle(
        self,
        empty: nn.Module,
        stand_in: nn.Module,
        scheme: Scheme | None,
        source: State,
        target: State,
    ) -> "Idle":
        """The layer of a rank with no channels: *empty* parameters, *stand_in* of one channel."""
        return Idle(
            empty,
            stand_in,
            narrows=source.axis if isinstance(source, Sliced) else None,
            empties=target.axis if isinstance(target, Sliced) and scheme != "inputs" else None,
            autocasts=self.mixes,
        )


def sized(
    layer: nn.Module, cuts: Cuts, counts: Mapping[str, int], device: torch.device
) -> nn.Module:
    """A copy of *layer* on *device* with uninitialised tensors, cut ones *counts* long."""
    local = copy.deepcopy(layer)
    parameters, buffers = fresh_tensors(layer, cuts, counts, device)
    local._parameters.update(parameters)
    local._buffers.update(buffers)
    return local


def fresh_tensors(
    layer: nn.Module, cuts: Cuts, counts: Mapping[str, int], device: torch.device
) -> tuple[dict[str, nn.Parameter | None], dict[str, Tensor | None]]:
    """Uninitialised parameters and buffers for *layer*'s own, cut ones *counts* long."""

    def empty(name: str, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if name in cuts:
            shape[cuts[name].axis] = counts[name]
        return torch.empty(shape, dtype=tensor.dtype, device=device)

    parameters = {
        name: parameter
        if parameter is None
        else nn.Parameter(empty(name, parameter), requires_grad=parameter.requires_grad)
        for name, parameter in layer._parameters.items()
    }
    buffers = {
        name: buffer if buffer is None else empty(name, buffer)
        for name, buffer in layer._buffers.items()
    }
    return parameters, buffers


class Idle(nn.Module):
    """A layer on a rank that holds none of its channels.

    torch refuses zero-filter convolutions and zero-channel pooling, so nothing is computed:
    the output is zeros of the right shape (mostly without elements). It still takes part in
    autograd exactly as on the other ranks, or the collectives behind it would hang there.
    """

    def __init__(
        self,
        empty: nn.Module,
        stand_in: nn.Module,
        *,
        narrows: int | None,
        empties: int | None,
        autocasts: bool,
    ) -> None:
        """
        Args:
            empty: the layer whose (empty) parameters and buffers this one owns.
            stand_in: the layer with one channel on the meta device; it knows output shapes.
            narrows: the input's axis that has no channels here, None where the input is full.
            empties: the output's axis that has no channels here, None for a summand of zeros.
            autocasts: whether autocast runs the layer in its lower precision.
        """
        super().__init__()
        for name, parameter in empty._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in empty._buffers.items():
            self.register_buffer(name, buffer, name not in empty._non_persistent_buffers_set)
        self._stand_in = (stand_in,)  # in a tuple: not a submodule, so not in the state_dict
        self._kind = type(stand_in).__name__
        self._narrows, self._empties, self._autocasts = narrows, empties, autocasts
        self.train(empty.training)

    def train(self, mode: bool = True) -> "Idle":
        super().train(mode)
        self._stand_in[0].train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape."""
        shape = list(x.shape)
        if self._narrows is not None:
            shape[self._narrows] = 1
        layer = self._stand_in[0].to(x.dtype)
        given = list(layer(torch.empty(shape, dtype=x.dtype, device="meta")).shape)
        if self._empties is not None:
            given[self._empties] = 0
        dtype = x.dtype
        if self._autocasts and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        zeros: Tensor = _Zeros.apply(x, given, dtype, *self.parameters())
        return zeros

    def extra_repr(self) -> str:
        return f"{self._kind} of no channels"


class _Zeros(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], dtype: torch.dtype, *parameters: Tensor
    ) -> Tensor:
        ctx.x = x.shape, x.dtype
        ctx.parameters = [(parameter.shape, parameter.dtype) for parameter in parameters]
        save_token(ctx, x)
        return x.new_zeros(shape, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        zeros = [
            gradient.new_zeros(shape, dtype=dtype) if needed else None
            for (shape, dtype), needed in zip(
                [ctx.x, *ctx.parameters],
                [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]],
                strict=True,
            )
        ]
        return zeros[0], None, None, *zeros[1:]


def cut_along(layer: nn.Module, names: Mapping[str, int], state: State) -> Cuts:
    """Cut each named tensor along its given axis as *state* is cut; nothing if it is not sliced."""
    if not isinstance(state, Sliced):
        return {}
    return {
        name: Sliced(state.layout, axis)
        for name, axis in names.items()
        if getattr(layer, name, None) is not None
    }
