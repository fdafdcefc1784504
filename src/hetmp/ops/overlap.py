"""Parameter gradients that are computed while their layer's input gradient travels.

Autograd runs nodes in the reverse of their forward order. So the parameters enter between the
start and the end of the input's exchange, and the way back is: input gradient, start of its
exchange, parameter gradients, end of the exchange.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from hetmp.exchange import alias
from hetmp.ops.layers.mixing import Mixing
from hetmp.ops.own_forward import own_forward


class Postponed:
    """The layers that take one exchanged value, whose parameter gradients are postponed.

    On a rank without channels they run as an ``Idle``, and take part alike.

    Args:
        takers: the layers, with their rules.
        regather: gathers the exchanged value once more from this rank's share of it, so that it
            need not be kept. Collective; None where every taker keeps it.
        keeps: the numbers of the takers that keep it all the same.
        around: entered, by number of the taker, while its parameter gradients are computed.

    Attributes:
        arrived: on the way back, by number of the taker: its output's gradient, and its input
            unless that is gathered again.
    """

    def __init__(
        self,
        takers: Sequence[tuple[Mixing, nn.Module]],
        regather: Callable[[Tensor], Tensor] | None,
        keeps: Collection[int] = (),
        around: Callable[[int], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.takers, self.regather, self.around = takers, regather, around
        self._keeps = keeps
        self.arrived: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._entered: list[dict[str, Tensor]] = []

    def keeps(self, number: int) -> bool:
        """Return whether a taker keeps the exchanged value for its parameters' gradients."""
        return self.regather is None or number in self._keeps

    def enter(self, x: Tensor) -> None:
        """Enter the layers' parameters, between start and end of the exchange of *x*."""
        named = [dict(layer.named_parameters()) for _, layer in self.takers]
        saved = x.detach() if self.regather else x.new_empty(0)
        parameters = [parameter for names in named for parameter in names.values()]
        entered = iter(_Parameters.apply(self, saved, *parameters) if parameters else ())
        self._entered = [{name: next(entered) for name in names} for names in named]

    def once_more(self) -> "Postponed":
        """Return these takers with parameters that enter nothing.

        Their outputs are computed from the same numbers and save as much. Of takers that have not
        run yet.
        """
        again = Postponed(self.takers, self.regather, self._keeps)
        again._entered = [
            {name: x.detach().requires_grad_(x.requires_grad) for name, x in names.items()}
            for names in self._entered
        ]
        return again

    def run(self, number: int, x: Tensor) -> Tensor:
        """Return a taker's output for the exchanged value. Once per taker."""
        rule, layer = self.takers[number]
        entered, self._entered[number] = self._entered[number], {}
        if not rule.is_plain(layer) or own_forward(layer) is not None or _hooked(layer):
            called: Tensor = functional_call(layer, entered, (x,))
            return called
        weight, bias = entered["weight"], entered.get("bias")
        mixed: Tensor = _Mixed.apply(self, number, x, weight, bias)
        return mixed


def _hooked(layer: nn.Module) -> bool:
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


class _Context(Protocol):
    """What the functions below keep for the backward pass."""

    postponed: Postponed
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def set_materialize_grads(self, value: bool) -> None: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _MixedContext(_Context, Protocol):
    """The same; which taker it is, and the shape and strides of its input."""

    number: int
    like: tuple[torch.Size, tuple[int, ...]]


class _Parameters(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, postponed: Postponed, saved: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.postponed = postponed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(saved)
        return tuple(alias(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        postponed = ctx.postponed
        (saved,) = ctx.saved_tensors
        x = postponed.regather(saved) if postponed.regather else None
        outgoing, needed = list(gradients), ctx.needs_input_grad[2:]
        at = 0
        for number, (rule, layer) in enumerate(postponed.takers):
            names = [name for name, _ in layer.named_parameters()]
            arrived = postponed.arrived.pop(number, None)
            if arrived is not None:
                gradient, own = arrived
                value = x if own is None else own
                assert value is not None
                wanted = dict(zip(names, needed[at : at + len(names)], strict=True))
                with postponed.around(number) if postponed.around else nullcontext():
                    by_name = rule.parameter_gradients(
                        layer,
                        gradient,
                        value,
                        wanted.get("weight", False),
                        wanted.get("bias", False),
                    )
                outgoing[at : at + len(names)] = [by_name.get(name) for name in names]
            at += len(names)
        return None, None, *outgoing


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _MixedContext,
        postponed: Postponed,
        number: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.postponed, ctx.number = postponed, number
        ctx.like = x.shape, x.stride()
        if postponed.keeps(number):
            ctx.save_for_backward(weight, x)
        else:
            ctx.save_for_backward(weight)
        rule, layer = postponed.takers[number]
        return rule.compute(layer, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _MixedContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        postponed = ctx.postponed
        rule, layer = postponed.takers[ctx.number]
        if any(ctx.needs_input_grad[3:]):
            postponed.arrived[ctx.number] = gradient, saved[0] if saved else None
        onward = None
        if ctx.needs_input_grad[2]:
            shape, stride = ctx.like
            like = saved[0] if saved else torch.empty_strided(
                shape, stride, dtype=gradient.dtype, device=gradient.device
            )  # fmt: skip
            onward = rule.input_gradient(layer, gradient, like, weight)
        return None, None, onward, None, None
