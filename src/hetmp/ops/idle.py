"""Layers and functions on a rank that holds none of an operation's channels.

torch refuses zero-filter convolutions and zero-channel pooling, so nothing is computed: the
output is zeros of the right shape (mostly without elements). It still takes part in autograd
exactly as on the other ranks, or the collectives behind it would hang there.
"""

import copy
from collections.abc import Callable, Collection
from typing import Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import NotRequired

from hetmp.core.state import Sliced
from hetmp.exchange import save_token
from hetmp.ops.call import OperatorRun
from hetmp.ops.own_forward import Follower, OwnForward


class IdleAxes(TypedDict):
    """The axes of an ``Idle``: see there."""

    narrows: int | None
    width: NotRequired[int]
    empties: int | None


class _Dtypes:
    """The dtypes of the other ranks' outputs; autocast decides operator by operator."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.dtype, torch.dtype], torch.dtype] = {}

    def of(self, x: Tensor, shape: list[int], compute: Callable[[Tensor], Tensor]) -> torch.dtype:
        """Return the dtype that *compute* gives for an input like *x*, of *shape*."""
        if not torch.is_autocast_enabled(x.device.type):
            return x.dtype
        key = x.dtype, torch.get_autocast_dtype(x.device.type)
        if key not in self._known:
            # One channel of one sample is computed, once, for the dtype of its result.
            with torch.no_grad():
                self._known[key] = compute(x.new_zeros([1, *shape[1:]])).dtype
        return self._known[key]


class Idle(OwnForward):
    """What a layer runs on a rank that holds none of its channels."""

    def __init__(
        self,
        layer: nn.Module,
        stand_in: nn.Module,
        *,
        narrows: int | None,
        width: int = 1,
        empties: int | None,
        tensors: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            layer: the layer, with empty parameters and buffers.
            stand_in: the layer with as few channels as can be, on the meta device; it knows
                output shapes.
            narrows: the input's axis that has no channels here, None where the input is full.
            width: how many channels the stand-in takes there.
            empties: the output's axis that has no channels here, None for a summand of zeros.
            tensors: the names of the parameters that take part; those that *layer* itself owns if
                None, not those of layers inside it.
        """
        super().__init__(layer)
        # Momentum says what to do with running statistics, which a stand-in does not have.
        self._stand_in = Follower(layer, stand_in, apart=("momentum",))
        self._narrows, self._width = narrows, width
        self._empties = empties
        self._tensors = frozenset(layer._parameters if tensors is None else tensors)
        self._dtypes = _Dtypes()
        self._shapes: dict[tuple[int, ...], torch.Size] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return zeros of the output's shape."""
        if self._stand_in.follow():
            self._shapes.clear()
        shape = list(x.shape)
        if self._narrows is not None:
            shape[self._narrows] = self._width
        output_shape = self._output_shape(tuple(shape), x.dtype)
        if self._empties is not None:
            output_shape[self._empties] = 0
        dtype = self._dtypes.of(x, shape, self._compute)
        taking_part = [p for name, p in self.layer.named_parameters() if name in self._tensors]
        zeros: Tensor = _Zeros.apply(x, output_shape, dtype, *taking_part)
        return zeros

    def _output_shape(self, shape: tuple[int, ...], dtype: torch.dtype) -> list[int]:
        if shape not in self._shapes:  # asking takes milliseconds
            layer = self._stand_in.copy.to(dtype)
            # With gradients, autograd would save tensors here that a recomputation would not.
            with torch.no_grad():
                self._shapes[shape] = layer(torch.empty(shape, dtype=dtype, device="meta")).shape
        return list(self._shapes[shape])

    def _compute(self, x: Tensor) -> Tensor:
        output: Tensor = copy.deepcopy(self._stand_in.copy).to_empty(device=x.device).eval()(x)
        return output


class _ZerosContext(Protocol):
    """What is kept for the backward pass: shapes and dtypes, and a token."""

    x: tuple[torch.Size, torch.dtype]
    parameters: list[tuple[torch.Size, torch.dtype]]
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _Zeros(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _ZerosContext, x: Tensor, shape: list[int], dtype: torch.dtype, *parameters: Tensor
    ) -> Tensor:
        ctx.x = x.shape, x.dtype
        ctx.parameters = [(parameter.shape, parameter.dtype) for parameter in parameters]
        save_token(ctx, x)
        return x.new_zeros(shape, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ZerosContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
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


def idle_function(run: OperatorRun, width: int) -> Callable[..., Tensor]:
    """Return what a rank without channels runs for a function of one tensor."""
    narrows, empties = run.source, run.target
    assert isinstance(narrows, Sliced)
    assert isinstance(empties, Sliced)

    dtypes = _Dtypes()

    def call(*args: object, **kwargs: object) -> Tensor:
        x = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
        shape = list(x.shape)
        shape[narrows.axis] = width

        def compute(stand_in: Tensor) -> Tensor:
            output: Tensor = run.call.invoke(
                tuple(stand_in if arg is x else arg for arg in args),
                {name: stand_in if arg is x else arg for name, arg in kwargs.items()},
            )
            return output

        output_shape = list(compute(torch.empty(shape, dtype=x.dtype, device="meta")).shape)
        output_shape[empties.axis] = 0
        zeros: Tensor = _Zeros.apply(x, output_shape, dtypes.of(x, shape, compute))
        return zeros

    return call
