"""What a module switches on or off around some of its operations: ``Scope``, part of each node."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.utils.checkpoint
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class Autocast:
    """A region in which torch casts for one type of device, or does not."""

    device_type: str
    dtype: torch.dtype
    enabled: bool


@dataclass(frozen=True)
class Scope:
    """What a module set around an operation; nothing of it where the module left that to others.

    Attributes:
        grad: whether gradients are computed; None where the module does not say.
        autocasts: the autocast regions around, the outermost first.
        hooks: the hooks on saved tensors around, the outermost first.
        checkpoint: the number of the gradient checkpoint around, the outermost of several, whose
            operations are computed again in the backward pass; None outside of any.
    """

    grad: bool | None = None
    autocasts: tuple[Autocast, ...] = ()
    hooks: tuple[saved_tensors_hooks, ...] = ()
    checkpoint: int | None = None

    def __str__(self) -> str:
        grad = {None: [], True: ["enable_grad"], False: ["no_grad"]}[self.grad]
        casts = [
            f"autocast({cast.device_type}, {str(cast.dtype).removeprefix('torch.')})"
            if cast.enabled
            else f"autocast({cast.device_type}, off)"
            for cast in self.autocasts
        ]
        hooks = [type(hook).__name__ for hook in self.hooks]
        again = [] if self.checkpoint is None else ["checkpoint"]
        return ", ".join([*grad, *casts, *hooks, *again])

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Set what the module set, for an operation that runs inside; a checkpoint is not begun."""
        with ExitStack() as stack:
            for cast in self.autocasts:
                stack.enter_context(
                    torch.autocast(cast.device_type, dtype=cast.dtype, enabled=cast.enabled)
                )
            for hook in self.hooks:
                stack.enter_context(hook)
            if self.grad is not None:
                stack.enter_context(torch.set_grad_enabled(self.grad))
            yield


PLAIN = Scope()
"""The scope of an operation around which the module sets nothing."""


class ScopeReader:
    """Follows what a module sets while it is traced.

    torch's own switch for gradients is asked. Autocast and hooks on saved tensors are noticed when
    they are entered: an autocast that is switched off leaves no other trace.
    """

    def __init__(self) -> None:
        self.begin(grad=True)

    def begin(self, *, grad: bool) -> None:
        """Start on a trace under a caller who computes gradients or does not (*grad*)."""
        self._ambient = grad
        self._autocasts: list[Autocast] = []
        self._hooks: list[saved_tensors_hooks] = []
        self._checkpoints: list[int] = []
        self._numbers = itertools.count()

    @property
    def scope(self) -> Scope:
        """The scope of an operation that is recorded now."""
        grad = torch.is_grad_enabled()
        scope = Scope(
            None if grad == self._ambient else grad,
            tuple(self._autocasts),
            tuple(self._hooks),
            self._checkpoints[0] if self._checkpoints else None,
        )
        return PLAIN if scope == PLAIN else scope

    @property
    def is_nested(self) -> bool:
        """Whether a gradient checkpoint is inside another one."""
        return len(self._checkpoints) > 1

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Number a gradient checkpoint; there is none where no gradients are computed."""
        if not torch.is_grad_enabled():
            yield
            return
        self._checkpoints.append(next(self._numbers))
        try:
            yield
        finally:
            self._checkpoints.pop()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notice, inside, which autocasts, hooks on saved tensors and checkpoints are entered."""
        enter_cast, leave_cast = vars(torch.autocast)["__enter__"], vars(torch.autocast)["__exit__"]

        def enter(region: torch.autocast) -> object:
            self._autocasts.append(Autocast(region.device, region.fast_dtype, region._enabled))
            return enter_cast(region)

        def leave(region: torch.autocast, *raised: object) -> object:
            self._autocasts.pop()
            return leave_cast(region, *raised)

        def enter_hooks(hooks: saved_tensors_hooks) -> None:
            self._hooks.append(hooks)

        def leave_hooks(hooks: saved_tensors_hooks, *raised: object) -> None:
            self._hooks.pop()

        def checkpoint(*_: object, **__: object) -> Iterator[None]:
            with self.checkpoint():
                yield

        with ExitStack() as stack:
            for owner, name, replacement in (
                (torch.autocast, "__enter__", enter),
                (torch.autocast, "__exit__", leave),
                (saved_tensors_hooks, "__enter__", enter_hooks),
                (saved_tensors_hooks, "__exit__", leave_hooks),
                # What torch does around a checkpoint that is not reentrant; it would look for the
                # memory of stand-ins.
                (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", checkpoint),
            ):
                stack.callback(setattr, owner, name, vars(owner)[name])
                setattr(owner, name, replacement)
            yield
