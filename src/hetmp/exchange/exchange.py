"""The differentiable exchanges: a move forward, its adjoint backward.

| exchange | forward | backward |
| --- | --- | --- |
| sliced -> full | Allgatherv | Reduce_scatter |
| partial -> sliced | Reduce_scatter | Allgatherv |
| partial -> full | Allreduce | Allreduce |
| full -> sliced | keep my channels | zeros elsewhere |
| sliced(p) -> sliced(q), on one axis or on two | Alltoallv | Alltoallv |
| full -> full, on entry: see ``entry.py`` | nothing | Allreduce |

The backward column is not written down anywhere below: it is the move from the dual of the
target to the dual of the source, where full and partial are each other's dual.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hetmp.cluster import AgreedError, Group
from hetmp.core.batch_layout import images_now
from hetmp.core.state import FULL, PARTIAL, Full, Partial, State, at_arrival, is_batch
from hetmp.exchange import moves
from hetmp.exchange.moves import USUAL, Carriage, Counter, Move


def dual(state: State) -> State:
    """Return the state of the gradient of an activation in *state*."""
    if isinstance(state, Full):
        return PARTIAL
    if isinstance(state, Partial):
        return FULL
    return state


class Exchange(nn.Module):
    """A collective between two layers that turns one state into another.

    Calling it is collective over *group*, and so is the backward pass through it. It takes this
    rank's tensor in *source* and returns its tensor in *target*: from ``(n, c_local, *spatial)``,
    sliced on axis 1, to ``(n, c, *spatial)``, full, for example. Any batch and trailing
    dimensions, any memory format; float32, float64, float16 and bfloat16.

    Args:
        group: the ranks that exchange.
        source, target: the states before and after.
        wire: name of the dtype in which floating-point numbers travel, both ways; None for their
            own. Needed where ranks compute in different dtypes.

    Raises:
        HetmpError: in a call; see ``moves.start``.

    Attributes:
        value: the name of what travels, for the reader.
        forward_counter: calls, bytes and seconds so far on this rank.
        backward_counter: the same of the backward pass.
    """

    def __init__(
        self,
        group: Group,
        source: State,
        target: State,
        wire: str | None = None,
        value: str = "",
    ) -> None:
        super().__init__()
        self.group, self.source, self.target = group, source, target
        self.wire, self.value = wire, value
        self.forward_counter, self.backward_counter = Counter(), Counter()

    def forward(self, x: Tensor, how: Carriage = USUAL) -> Tensor:
        """Exchange *x*, this rank's tensor in *source*, and wait for the result. Collective."""
        if self.group.size == 1:
            return x
        moved: Tensor = _Now.apply(x, self, self.of_batch(how))
        return moved

    def of_batch(self, how: Carriage) -> Carriage:
        """Return *how*, with the number of images where a state is cut along the batch.

        By the time of the backward pass, another batch may be under way.
        """
        if is_batch(self.source) or is_batch(self.target):
            return replace(how, images=images_now())
        return how

    def start(self, x: Tensor, how: Carriage = USUAL) -> "Pending":
        """Begin to exchange *x*, which must not change until ``wait()``. Collective."""
        return Pending(self, x, self.of_batch(how))

    def move(self, x: Tensor, how: Carriage = USUAL, *, blocking: bool = False) -> Move:
        """Begin the forward move of *x*, without autograd. Collective.

        *how* says how it travels; *blocking* is as in ``moves.start``.
        """
        return moves.start(
            self.group,
            x,
            at_arrival(self.source, how.images),
            at_arrival(self.target, how.images),
            self.forward_counter,
            how,
            wire=self.wire,
            blocking=blocking,
            value=self.value,
        )

    def move_back(self, gradient: Tensor, how: Carriage = USUAL, *, blocking: bool = False) -> Move:
        """Begin the adjoint move of *gradient*, without autograd. Collective.

        *gradient* is in the dual of the target. *how* is what the forward move had; *blocking* is
        as in ``moves.start``.
        """
        return moves.start(
            self.group,
            gradient,
            at_arrival(dual(self.target), how.images),
            at_arrival(dual(self.source), how.images),
            self.backward_counter,
            # Autograd may add to the gradient that it gets.
            replace(how, borrowed=False),
            wire=self.wire,
            blocking=blocking,
            value=self.value,
            direction="backward",
        )

    @property
    def collective(self) -> str:
        """The MPI collective that the forward pass calls, ``-`` where nothing moves."""
        return moves.collective(self.source, self.target)

    @property
    def backward_collective(self) -> str:
        """The MPI collective that the backward pass calls."""
        return moves.collective(dual(self.target), dual(self.source))

    def extra_repr(self) -> str:
        return f"{self.source} -> {self.target}"


class Pending:
    """An exchange under way; forward and backward overlap the work between its two ends.

    Backward, ``wait`` starts the adjoint and ``start`` waits for it.
    """

    def __init__(self, exchange: Exchange, x: Tensor, how: Carriage) -> None:
        self._exchange = exchange
        self._flight = _Flight(exchange, how)
        if exchange.group.size == 1:
            self._x = x
        else:
            self._x = _Start.apply(x, self._flight)

    def wait(self) -> Tensor:
        """Return the exchanged tensor. Once per exchange."""
        if self._exchange.group.size == 1:
            return self._x
        arrived: Tensor = _Wait.apply(self._x, self._flight)
        return arrived


class _Flight:
    """The state that the two ends of a pending exchange share."""

    def __init__(self, exchange: Exchange, how: Carriage) -> None:
        self.exchange, self.how = exchange, how
        self.forward: Move | None = None
        self.backward: Move | None = None


def save_token(ctx: Any, x: Tensor) -> None:
    """Save an empty tensor for the backward pass.

    ``torch.utils.checkpoint`` recomputes a region up to the last tensor it saved, and a rank
    with no channels may save none: with a token in every collective node, every rank's
    recomputation runs through every collective.
    """
    ctx.save_for_backward(x.new_empty(0))


def _unviewed(x: Tensor) -> Tensor:
    """*x* on the same memory, but no view: autograd forbids in-place work (such as an in-place
    ReLU behind an exchange) on a view that a custom function made."""
    return alias(x) if x._is_view() else x


def alias(x: Tensor) -> Tensor:
    """Return a tensor on the memory of *x* that autograd does not know to be a view of it."""
    return x.new_empty(0).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


class _Now(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, how: Carriage) -> Tensor:
        ctx.exchange, ctx.how = exchange, how
        save_token(ctx, x)
        return _unviewed(exchange.move(x, how, blocking=True).wait())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _ = ctx.saved_tensors
        return ctx.exchange.move_back(gradient, ctx.how, blocking=True).wait(), None, None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        save_token(ctx, x)
        flight.forward = flight.exchange.move(x, flight.how)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, placeholder: Tensor) -> tuple[Tensor, None]:
        _ = ctx.saved_tensors
        move, ctx.flight.backward = ctx.flight.backward, None
        return move.wait(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: _Flight) -> Tensor:
        ctx.flight, ctx.shape = flight, x.shape
        save_token(ctx, x)
        move, flight.forward = flight.forward, None
        assert move is not None
        return _unviewed(move.wait())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _ = ctx.saved_tensors
        ctx.flight.backward = ctx.flight.exchange.move_back(gradient, ctx.flight.how)
        # The real gradient is under way: _Start returns it and ignores this placeholder.
        return gradient.new_zeros(()).expand(ctx.shape), None


def leave(group: Group, x: Tensor) -> Tensor:
    """Return a full activation as the user gets it, with gradients averaged over the ranks.

    Scaling the incoming gradient by 1/P makes it partial, as the rule wants it, so the user's
    own loss needs no change. Takes a full tensor of any shape; not collective.
    """
    if group.size == 1 or not x.requires_grad:
        return x
    left: Tensor = _Leave.apply(x, group.size)
    return left


class _Leave(torch.autograd.Function):
    # A copy, so that in-place work on the output does not reach a tensor that autograd saved.
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        save_token(ctx, x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise AgreedError(
                "create_graph=True goes back through a sliced model, whose exchanges give first "
                "derivatives only: gradient penalties, Hessian products and the like are not "
                "possible; take what depends on outputs alone, or one rank"
            )
        return gradient / ctx.ranks, None
