"""The operands of an operation on shares, and when it is looked at."""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hetmp.core.state import Sliced
from hetmp.ops import mapped
from hetmp.slicing.shares.names import operator_name
from hetmp.slicing.shares.share import Share, share_of_tensor

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]

turn_of = threading.local()
"""Has ``user=True`` while a user's hook runs in a backward pass."""


def title_of(func: Callable[..., Any]) -> str:
    """Return the name of a function, method, operator or attribute, as it is known by."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", name)
    if not (name.startswith("__") and name.endswith("__")):
        return name
    return operator_name(name)


def whole_shape(x: Tensor, share: Share | None) -> tuple[int, ...]:
    """Return the shape of the whole tensor that *x* is a *share* of; its own where it is none."""
    shape = list(x.shape)
    if share is not None and isinstance(share.state, Sliced):
        shape[share.state.axis] = share.state.layout.total
    return tuple(shape)


def shares_among(args: Arguments, kwargs: Named) -> list[tuple[Tensor, Share]]:
    """Return the operands that are shares, in order."""
    shares: list[tuple[Tensor, Share]] = []

    def note(item: object) -> object:
        share = share_of_tensor(item)
        if isinstance(item, Tensor) and share is not None:
            shares.append((item, share))
        return item

    mapped(args, note)
    mapped(dict(kwargs), note)
    return shares


def first_share(args: Arguments, kwargs: Named) -> Share | None:
    """Return what the first operand that is a share is a share of, or None."""
    return next((share for _, share in shares_among(args, kwargs)), None)


def asked_from(folder: str, depth: int) -> bool:
    """Return whether code in *folder* calls, which is *depth* frames above."""
    return sys._getframe(depth).f_code.co_filename.startswith(folder)


def in_backward() -> bool:
    """Return whether autograd is at work, whose operations are right on shares."""
    return torch._C._current_graph_task_id() != -1 and not getattr(turn_of, "user", False)
