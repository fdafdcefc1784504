"""Reshapes of a share, by its own sizes, and transpositions by an attribute."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hetmp.core.partition import Layout, Partition
from hetmp.core.state import Partial, Sliced
from hetmp.slicing.shares.operands import Arguments, Named, in_backward, title_of
from hetmp.slicing.shares.share import as_share, share_of_tensor
from hetmp.slicing.shares.words import refuse


def turn(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    """Transpose a share, as ``x.T`` and ``x.mT`` do."""
    result, share = func(*args, **kwargs), share_of_tensor(args[0])
    if share is None or not isinstance(share.state, Sliced) or in_backward():
        return result
    axis, dims = share.state.axis, result.dim()
    if title_of(func) in ("T", "H"):
        axis = dims - 1 - axis
    elif axis >= dims - 2:
        axis = 2 * dims - 3 - axis
    return as_share(result, share._replace(state=Sliced(share.state.layout, axis)))


def reshape(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    """Reshape a share to sizes of its own, with the cut axis kept, or to a vector.

    Raises:
        HetmpError: the cut axis is merged with others, or split.
    """
    share = share_of_tensor(args[0])
    if share is None or in_backward():
        return func(*args, **kwargs)
    x = args[0]
    if x.numel() == 0 and isinstance(share.state, Sliced):
        args = (x, *_sizes_known(x, share.state.axis, args[1:]))
    result = func(*args, **kwargs)
    if isinstance(share.state, Partial) or result.shape == x.shape:
        return as_share(result, share)
    wanted = [i for i, size in enumerate(_listed(args[1:])) if size == -1]
    axis = _axis_after(x.shape, result.shape, share.state.axis, wanted)
    if axis is not None:
        return as_share(result, share._replace(state=Sliced(share.state.layout, axis)))
    if result.dim() != 1:
        refuse(title_of(func), share)
    other = math.prod(size for i, size in enumerate(x.shape) if i != share.state.axis)
    counts = tuple(count * other for count in share.state.layout.counts)
    flat = Sliced(Layout.of(Partition(counts)), 0)
    return as_share(result, share._replace(state=flat, in_order=False))


def _sizes_known(x: Tensor, axis: int, sizes: Arguments) -> Arguments:
    """Return the *sizes* with what -1 stands for, which a share of nothing does not say."""
    listed = _listed(sizes)
    if (
        not all(isinstance(size, int) for size in listed)
        or listed.count(-1) != 1
        or 0 not in listed
    ):
        return sizes
    of_one = math.prod(size for at, size in enumerate(x.shape) if at != axis)
    known = math.prod(size or 1 for size in listed if size != -1)
    return tuple(of_one // known if size == -1 else size for size in listed)


def _listed(args: Arguments) -> Arguments:
    return tuple(args[0]) if args and isinstance(args[0], tuple | list) else args


def _axis_after(old: torch.Size, new: torch.Size, axis: int, wanted: list[int]) -> int | None:
    """Return where an axis is after a reshape that keeps it; None if it does not."""
    before, behind = math.prod(old[:axis]), math.prod(old[axis + 1 :])
    kept = [
        at
        for at in range(len(new))
        if new[at] == old[axis]
        and math.prod(new[:at]) == before
        and math.prod(new[at + 1 :]) == behind
    ]
    return next((at for at in kept if at in wanted), kept[0] if kept else None)
