"""Operations element by element, and what is linear in a sum over a share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hetmp.core.state import Partial, Sliced
from hetmp.slicing.shares.names import LINEAR, PRODUCTS
from hetmp.slicing.shares.operands import Arguments, Named, in_backward, shares_among, title_of
from hetmp.slicing.shares.share import as_share, share_of_tensor
from hetmp.slicing.shares.words import refuse


def elementwise(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    """Compute an elementwise function; a share gives a share that is cut alike.

    Raises:
        HetmpError: operands that are cut in unlike ways, a root of a summand and the like.
    """
    title = title_of(func)
    if title.endswith("_") and not in_backward():
        _check_in_place(title, args, kwargs)
    result = func(*args, **kwargs)
    if type(result) is not Tensor or in_backward():
        return result
    if title in ("to", "type_as") and share_of_tensor(args[0]) is None:
        return result  # it tells the dtype and device alone
    if title.endswith("_") and not torch.is_grad_enabled() and share_of_tensor(args[0]) is None:
        return result  # an optimizer's state, which takes in a gradient
    shares = shares_among(args, kwargs)
    if any(isinstance(share.state, Partial) for _, share in shares):
        return summand(title, args, kwargs, result)
    x, share = shares[0]
    assert isinstance(share.state, Sliced)
    dims = result.dim()
    axis = share.state.axis - x.dim() + dims
    for other, own in shares:
        assert isinstance(own.state, Sliced)
        if own.state.axis - other.dim() + dims != axis or own.state.layout != share.state.layout:
            refuse(title, own)
    if result.shape[axis] != share.state.layout.counts[share.origin.group.rank]:
        refuse(title, share)
    for other in _learned(args, kwargs):
        at = axis - dims + other.dim()
        if at < 0 or other.shape[at] == 1:  # its gradient would be summed over a share
            refuse(title, share)
    return as_share(result, share._replace(state=Sliced(share.state.layout, axis)))


def _check_in_place(title: str, args: Arguments, kwargs: Named) -> None:
    """Refuse to write into a share what is a summand: it would be another number on every rank."""
    target = share_of_tensor(args[0]) if args else None
    if target is not None and isinstance(target.state, Sliced):
        for _, share in shares_among(args, kwargs):
            if isinstance(share.state, Partial):
                refuse(title, share)


def _learned(args: Arguments, kwargs: Named) -> list[Tensor]:
    """Return the operands that are no shares, and whose gradient is wanted."""
    operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    wanted = torch.is_grad_enabled()
    return [x for x in operands if wanted and x.requires_grad and share_of_tensor(x) is None]


def summand(title: str, args: Arguments, kwargs: Named, result: Any) -> Any:
    """Return *result* as a summand, where one is among the operands.

    Raises:
        HetmpError: an operation that is not linear in it.
    """
    shares = shares_among(args, kwargs)
    partial = [(x, share) for x, share in shares if isinstance(share.state, Partial)]
    share = partial[0][1]
    name = title.removesuffix("_")
    divides = name in PRODUCTS and "div" in name and share_of_tensor(args[0]) is None
    if (
        name not in LINEAR
        or (name in PRODUCTS and (len(partial) > 1 or _learned(args, kwargs)))
        or divides
        or len(partial) < len(shares)
    ):
        refuse(title, share)
    return as_share(result, share) if isinstance(result, Tensor) else result
