"""full -> full on entry: nothing forward, Allreduce backward.

For tensors that every rank holds whole and whose gradient is partial: the user's input and
replicated parameters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hetmp.cluster import AgreedError, Group
from hetmp.core.state import FULL, PARTIAL
from hetmp.exchange import moves
from hetmp.exchange.exchange import alias, save_token
from hetmp.exchange.moves import Counter


@dataclass(frozen=True)
class _Like:
    """The shape, dtype and device of a tensor that need not be kept."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "_Like":
        """Return those of *tensor*."""
        return cls(tensor.shape, tensor.dtype, tensor.device)


Finish = Callable[[], list[Tensor | None]]

_pending: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
"""The parameters whose gradients are this rank's summands so far, by their ``id``."""


class BackwardSum(nn.Module):
    """The entry of some tensors, whose gradients travel together when all of them are there.

    They travel in the dtype *wire* if it is not None. *value* names them for the reader.
    """

    def __init__(self, group: Group, wire: str | None = None, value: str = "gradients") -> None:
        super().__init__()
        self.group, self.wire, self.value = group, wire, value
        self.backward_counter = Counter()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors, on the same memory, with gradients summed over the ranks.

        Takes full tensors of any shape. Not collective; the backward pass is.
        """
        wanted = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        if self.group.size == 1 or not wanted or not torch.is_grad_enabled():
            return tensors
        entered = list(tensors)
        aliases = _Enter.apply(self, *(tensors[i] for i in wanted))
        for i, entering in zip(wanted, aliases, strict=True):
            entered[i] = entering
        return tuple(entered)

    def extra_repr(self) -> str:
        return "full -> full"


class ParameterEntry(BackwardSum):
    """The entry of replicated parameters, in bundles that travel while the backward pass goes on.

    Each bundle passes two nodes of autograd. The outer one is made when the pass begins, and so is
    among the last on the way back: it waits for the sums. The inner one is made where the first
    of the bundle's parameters is needed: once it has their gradients, it starts the sums. Nodes
    run in the reverse of the order in which they were made, so all ranks start them alike.

    Attributes:
        later: whether gradients stay this rank's summands: see ``sum_later``.
    """

    later = False

    def begin(self, bundles: Sequence[Mapping[str, nn.Parameter]]) -> "EnteredParameters":
        """Begin a pass; return its parameters, by name. Not collective; the backward pass is."""
        return EnteredParameters(self, bundles)

    @contextmanager
    def sum_later(self) -> Iterator[None]:
        """Let backward passes in here leave gradients as this rank's summands.

        The first backward pass outside sums them together with its own. Not collective.
        """
        before, self.later = self.later, True
        try:
            yield
        finally:
            self.later = before


class EnteredParameters(Mapping[str, Tensor]):
    """The replicated parameters of one pass, by name; a bundle enters when it is first needed."""

    def __init__(
        self, entry: ParameterEntry, bundles: Sequence[Mapping[str, nn.Parameter]]
    ) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._inner: dict[str, tuple[_Flight, dict[str, Tensor]]] = {}
        sums = entry.group.size > 1 and torch.is_grad_enabled()
        for bundle in bundles:
            self._tensors.update(bundle)
            wanted = {name: p for name, p in bundle.items() if sums and p.requires_grad}
            if wanted:
                flight = _Flight(entry, tuple(wanted.values()))
                outer = _Outer.apply(flight, *wanted.values())
                waiting = flight, dict(zip(wanted, outer, strict=True))
                self._inner.update(dict.fromkeys(wanted, waiting))

    def __getitem__(self, name: str) -> Tensor:
        """Return a parameter, with a gradient that is summed over the ranks."""
        if name in self._inner:
            flight, outer = self._inner[name]
            # Whatever the module sets where the first of them is needed, others are needed, too.
            with torch.enable_grad():
                inner = _Inner.apply(flight, *outer.values())
            self._tensors.update(zip(outer, inner, strict=True))
            for entering in outer:
                del self._inner[entering]
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Flight:
    """A bundle of gradients under way."""

    def __init__(self, entry: ParameterEntry, parameters: tuple[nn.Parameter, ...]) -> None:
        self.entry, self.parameters = entry, parameters
        self.finish: Finish | None = None

    def start(self, gradients: Sequence[Tensor | None]) -> None:
        """Begin to sum *gradients*, of this pass and of those that were left for later."""
        if self.entry.later:
            for parameter in self.parameters:
                if parameter.grad is not None and not is_pending(parameter):
                    raise AgreedError(
                        "a gradient that is summed over the ranks cannot be added to by one that "
                        "is not yet: begin with the passes of sum_later(), after zero_grad()"
                    )
                _pending[id(parameter)] = parameter
            self.finish = lambda: list(gradients)
            return
        before = [_taken_over(parameter) for parameter in self.parameters]
        summands = [_added(a, b) for a, b in zip(gradients, before, strict=True)]
        like = [_Like.of(parameter) for parameter in self.parameters]
        finish = _start_sums(self.entry, summands, like, blocking=False)

        def rest() -> list[Tensor | None]:
            # Autograd adds to the gradient that the parameter has.
            return [_less(a, b) for a, b in zip(finish(), before, strict=True)]

        self.finish = rest


def _taken_over(parameter: nn.Parameter) -> Tensor | None:
    """Return the summand that was left for later, which is no longer pending; None without one."""
    return None if _pending.pop(id(parameter), None) is None else parameter.grad


def is_pending(parameter: Tensor) -> bool:
    """Return whether the gradient of *parameter* is only this rank's summand so far."""
    return id(parameter) in _pending and parameter.grad is not None


def any_pending() -> bool:
    """Return whether any parameter may have such a gradient."""
    return bool(_pending)


def _added(gradient: Tensor | None, before: Tensor | None) -> Tensor | None:
    if gradient is None or before is None:
        return before if gradient is None else gradient
    return gradient + before


def _less(gradient: Tensor | None, before: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or before is None else gradient - before


class _Node(torch.autograd.Function):
    """A node that a bundle passes: nothing forward."""

    @staticmethod
    def forward(ctx: Any, flight: _Flight, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.flight = flight
        ctx.set_materialize_grads(False)
        return tuple(alias(tensor) for tensor in tensors)


class _Outer(_Node):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *placeholders: None) -> tuple[Tensor | None, ...]:
        finish, ctx.flight.finish = ctx.flight.finish, None
        return None, *finish()


class _Inner(_Node):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.flight.start(gradients)
        # The sums are under way: the outer node returns them.
        return (None,) * (1 + len(gradients))


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entry: BackwardSum, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.entry = entry
        ctx.like = [_Like.of(tensor) for tensor in tensors]
        ctx.set_materialize_grads(False)
        save_token(ctx, tensors[0])
        return tuple(alias(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        return None, *_start_sums(ctx.entry, gradients, ctx.like, blocking=True)()


def _start_sums(
    entry: BackwardSum,
    gradients: Sequence[Tensor | None],
    like: Sequence[_Like],
    *,
    blocking: bool,
) -> Finish:
    """Begin to sum gradients over the ranks, in one message for each dtype and device. Collective.

    *like* says what the gradient of each looks like.
    """
    parts: list[tuple[list[int], moves.Move]] = []
    for dtype, device in dict.fromkeys((x.dtype, x.device) for x in like):
        same = [i for i, x in enumerate(like) if (x.dtype, x.device) == (dtype, device)]
        summands = [gradients[i] for i in same]
        # After the gradients, the number of ranks that have each: unused on all means None.
        used = torch.tensor([g is not None for g in summands], dtype=dtype, device=device)
        flat = torch.cat(
            [
                used.new_zeros(like[i].shape.numel()) if g is None else g.reshape(-1)
                for i, g in zip(same, summands, strict=True)
            ]
            + [used]
        )
        move = moves.start(
            entry.group,
            flat,
            PARTIAL,
            FULL,
            entry.backward_counter,
            moves.Carriage(taken=True),
            wire=entry.wire,
            blocking=blocking,
            value=entry.value,
            direction="backward",
        )
        parts.append((same, move))

    def finish() -> list[Tensor | None]:
        summed: list[Tensor | None] = [None] * len(like)
        for same, move in parts:
            *flats, users = move.wait().split([*(like[i].shape.numel() for i in same), len(same)])
            for i, flat, count in zip(same, flats, users.tolist(), strict=True):
                summed[i] = flat.view(like[i].shape) if count else None
        return summed

    return finish
