"""What an operation makes of a share: a share, a summand, something else, or nothing right."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hetmp.core.state import Partial, Sliced
from hetmp.slicing.shares.arithmetic import elementwise
from hetmp.slicing.shares.by_rule import by_rule, check_index
from hetmp.slicing.shares.names import DRAWN, ELEMENTWISE, EMPTY, PASSED, RESHAPED, TURNED, VALUES
from hetmp.slicing.shares.operands import (
    Arguments,
    Named,
    asked_from,
    first_share,
    in_backward,
    title_of,
    turn_of,
)
from hetmp.slicing.shares.shapes import reshape, turn
from hetmp.slicing.shares.share import Handler, Share, as_share, share_of_tensor
from hetmp.slicing.shares.words import refuse, refuse_draw


def handler_for(func: Callable[..., Any]) -> Handler:
    """Return what is done in the place of a *func* of torch's that is given a share."""
    name = title_of(func)
    plain = name.removesuffix("_")
    if name == "grad":
        # A tensor's gradient, or torch.autograd.grad.
        return _gradient if getattr(func, "__name__", "") == "__get__" else _gradients
    if name == "register_hook":
        return _hook
    if name in DRAWN:
        return _refuse_draw
    if name in EMPTY:
        return _like
    if name in VALUES:
        return _value
    if name in PASSED or name.startswith(("is_", "_foreach_")) or _is_question(func, name):
        return _refuse if name in ("_foreach_norm", "_foreach_max") else _pass
    if name in TURNED:
        return turn
    if name in RESHAPED:
        return reshape
    if name == "setitem":
        return _assign
    return elementwise if plain in ELEMENTWISE else by_rule


def _is_question(func: Callable[..., Any], name: str) -> bool:
    """Return whether an attribute is read that is no tensor of the same values."""
    return getattr(func, "__name__", "") == "__get__" and name not in (
        *("grad", "data", "real", "imag"),
        *TURNED,
    )


# --- the handlers: each is called where torch takes tensors of a subclass for plain ones


def _pass(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    return func(*args, **kwargs)


def _value(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    share = first_share(args, kwargs)
    if share is not None and isinstance(share.state, Partial) and not in_backward():
        refuse("the value", share)
    return func(*args, **kwargs)


def _refuse_draw(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    if in_backward():
        return func(*args, **kwargs)
    share = first_share(args, kwargs)
    if share is None or isinstance(share.state, Partial):
        return func(*args, **kwargs)
    refuse_draw(title_of(func), share)


def _refuse(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    share = first_share(args, kwargs)
    if share is None or in_backward():
        return func(*args, **kwargs)
    refuse(title_of(func), share)


def _gradient(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    gradient = func(*args, **kwargs)
    share = share_of_tensor(args[0])
    if gradient is None or share is None or isinstance(share.state, Partial):
        return gradient
    return as_share(gradient, _gradient_of(share))


def _gradients(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    gradients = func(*args, **kwargs)
    inputs = args[1] if len(args) > 1 else kwargs["inputs"]
    for x, gradient in zip(
        (inputs,) if isinstance(inputs, Tensor) else inputs, gradients, strict=True
    ):
        share = share_of_tensor(x)
        if share is not None and gradient is not None and isinstance(share.state, Sliced):
            as_share(gradient, _gradient_of(share))
    return gradients


def _gradient_of(share: Share) -> Share:
    known = share.title.startswith("the gradient")
    return share if known else share._replace(title=f"the gradient of {share.title}")


def _hook(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    tensor, hook = (*args, *kwargs.values())
    share = share_of_tensor(tensor)
    if share is None or isinstance(share.state, Partial):
        return func(tensor, hook)
    own = _gradient_of(share)

    def users(gradient: Tensor) -> Any:
        before, turn_of.user = getattr(turn_of, "user", False), True
        try:
            return hook(as_share(gradient, own))
        finally:
            turn_of.user = before

    return func(tensor, users)


def _like(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    result = func(*args, **kwargs)
    share = first_share(args, kwargs)
    # What an optimizer of torch's makes for its state is filled by its arithmetic alone.
    if share is None or isinstance(share.state, Partial) or asked_from(_OPTIMIZERS, 4):
        return result
    return as_share(result, share) if isinstance(result, Tensor) else result


_OPTIMIZERS = os.path.dirname(torch.optim.__file__)


def _assign(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    x, index = args[0], args[1]
    share, mask = share_of_tensor(x), share_of_tensor(index)
    if share is None or isinstance(share.state, Partial) or in_backward():
        return func(*args, **kwargs)
    if mask is None or mask.state != share.state or index.dtype != torch.bool:
        check_index("assignment to a part", x, share, index)
    return func(*args, **kwargs)
