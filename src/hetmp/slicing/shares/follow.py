"""What an operation makes of a share: a share, a summand, something else, or nothing right."""

import math
import operator
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hetmp.core.partition import Layout, Partition
from hetmp.core.state import FULL, PARTIAL, OperandState, Partial, Sliced
from hetmp.ops import Call, Ref, Value, mapped, rule_for
from hetmp.slicing.shares.names import (
    DRAWN,
    ELEMENTWISE,
    EMPTY,
    LINEAR,
    PASSED,
    PRODUCTS,
    RESHAPED,
    TURNED,
    operator_name,
)
from hetmp.slicing.shares.share import Handler, Share, as_share, share_of_tensor
from hetmp.slicing.shares.words import refuse, refuse_draw

Arguments = tuple[Any, ...]
Named = Mapping[str, Any]


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
    if name in PASSED or name.startswith(("is_", "_foreach_")) or _is_question(func, name):
        return _refuse if name in ("_foreach_norm", "_foreach_max") else _pass
    if name in TURNED:
        return _turn
    if name in RESHAPED:
        return _reshape
    if name == "setitem":
        return _assign
    return _elementwise_result if plain in ELEMENTWISE else _by_rule


def title_of(func: Callable[..., Any]) -> str:
    """Return the name of a function, method, operator or attribute, as it is known by."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", name)
    if not (name.startswith("__") and name.endswith("__")):
        return name
    return operator_name(name)


def _is_question(func: Callable[..., Any], name: str) -> bool:
    """Return whether an attribute is read that is no tensor of the same values."""
    return getattr(func, "__name__", "") == "__get__" and name not in (
        *("grad", "data", "real", "imag"),
        *TURNED,
    )


# --- the handlers: each is called where torch takes tensors of a subclass for plain ones


def _pass(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    return func(*args, **kwargs)


def _refuse_draw(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    if _in_backward():
        return func(*args, **kwargs)
    share = _first(args, kwargs)
    if share is None or isinstance(share.state, Partial):
        return func(*args, **kwargs)
    refuse_draw(title_of(func), share)


def _refuse(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    share = _first(args, kwargs)
    if share is None or _in_backward():
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
    return func(tensor, lambda gradient: hook(as_share(gradient, own)))


def _like(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    result = func(*args, **kwargs)
    share = _first(args, kwargs)
    # What an optimizer of torch's makes for its state is filled by its arithmetic alone.
    if share is None or isinstance(share.state, Partial) or _asked_by_optimizer():
        return result
    return as_share(result, share) if isinstance(result, Tensor) else result


_OPTIMIZERS = os.path.dirname(torch.optim.__file__)


def _asked_by_optimizer() -> bool:
    frame = sys._getframe(4)  # above: this, the handler, what asks it, the method of the class
    return frame.f_code.co_filename.startswith(_OPTIMIZERS)


def _turn(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    result, share = func(*args, **kwargs), share_of_tensor(args[0])
    if share is None or not isinstance(share.state, Sliced) or _in_backward():
        return result
    axis, dims = share.state.axis, result.dim()
    if title_of(func) in ("T", "H"):
        axis = dims - 1 - axis
    elif axis >= dims - 2:
        axis = 2 * dims - 3 - axis
    return as_share(result, share._replace(state=Sliced(share.state.layout, axis)))


def _reshape(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    share = share_of_tensor(args[0])
    if share is None or _in_backward():
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


def _assign(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    x, index = args[0], args[1]
    share, mask = share_of_tensor(x), share_of_tensor(index)
    if share is None or isinstance(share.state, Partial) or _in_backward():
        return func(*args, **kwargs)
    if mask is None or mask.state != share.state or index.dtype != torch.bool:
        _check_index("assignment to a part", x, share, index)
    return func(*args, **kwargs)


def _check_index(title: str, x: Tensor, share: Share, index: object) -> None:
    """Refuse an index that takes a part of the cut axis."""
    whole = Value((_whole_shape(x, share),))
    call = Call(operator.getitem, (Ref("x"), index), {}, {"x": whole}, whole)
    rule = rule_for(operator.getitem)
    assert rule is not None
    flow = None if isinstance(index, Tensor) else rule.flow(call, {"x": share.state})
    if flow is None or getattr(flow.gives, "layout", None) != getattr(share.state, "layout", None):
        refuse(title, share)


def _elementwise_result(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    result = func(*args, **kwargs)
    if type(result) is not Tensor or _in_backward():
        return result
    title = title_of(func)
    if title.endswith("_") and not torch.is_grad_enabled() and share_of_tensor(args[0]) is None:
        return result  # an optimizer's state, which takes in a gradient
    shares = _shares(args, kwargs)
    if any(isinstance(share.state, Partial) for _, share in shares):
        return _summand(title, args, kwargs, result)
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
    return as_share(result, share._replace(state=Sliced(share.state.layout, axis)))


def _summand(title: str, args: Arguments, kwargs: Named, result: Any) -> Any:
    """Follow an operation with a summand among its operands."""
    shares = _shares(args, kwargs)
    partial = [(x, share) for x, share in shares if isinstance(share.state, Partial)]
    share = partial[0][1]
    name = title.removesuffix("_")
    divides = name in PRODUCTS and "div" in name and share_of_tensor(args[0]) is None
    if (
        name not in LINEAR
        or (name in PRODUCTS and len(partial) > 1)
        or divides
        or len(partial) < len(shares)
    ):
        refuse(title, share)
    return as_share(result, share) if isinstance(result, Tensor) else result


def _by_rule(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    """Follow an operation by the rule that it has inside of a module."""
    if _in_backward():
        return func(*args, **kwargs)
    shares = _shares(args, kwargs)
    if not shares:
        return func(*args, **kwargs)
    title, first = title_of(func), shares[0][1]
    if any(isinstance(share.state, Partial) for _, share in shares):
        return _summand(title, args, kwargs, func(*args, **kwargs))
    target = operator.getitem if title == "getitem" else func
    rule = rule_for(target) or rule_for(title)
    if rule is None or kwargs.get("out") is not None:
        refuse(title, first)
    if title == "getitem":
        _check_index("a part", args[0], first, args[1])
    values: dict[str, Value] = {}
    states: dict[str, OperandState] = {}

    def named(item: object) -> object:
        if not isinstance(item, Tensor):
            return item
        name, share = f"x{len(values)}", share_of_tensor(item)
        values[name] = Value((_whole_shape(item, share),))
        states[name] = FULL if share is None else share.state
        return Ref(name)

    call = Call(
        title if rule_for(target) is None else target,
        mapped(args, named),
        mapped(dict(kwargs), named),
        values,
        _value_of_whole(func, args, kwargs),
    )
    flow = None
    if call.result.holds_tensors and rule.unfit(call) is None:
        flow = rule.flow(call, states)
    if flow is None or any(flow.wants.get(name, FULL) != state for name, state in states.items()):
        refuse(title, first)
    return _with_states(title, first, func(*args, **kwargs), flow.gives, kwargs)


def _value_of_whole(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Value:
    """Return what the operation gives for whole tensors; nothing where that cannot be known."""

    def whole(item: object) -> object:
        if not isinstance(item, Tensor):
            return item
        shape = _whole_shape(item, share_of_tensor(item))
        return torch.empty(shape, dtype=item.dtype, device="meta")

    try:
        with torch.no_grad():
            return _value(func(*mapped(args, whole), **mapped(dict(kwargs), whole)))
    except Exception:  # a tensor in the shape of a share beside a whole one, a value that is asked
        return Value()


def _with_states(title: str, share: Share, result: Any, gives: Any, kwargs: Named) -> Any:
    if isinstance(result, tuple | list):
        states = gives if isinstance(gives, tuple) else (gives,) * len(result)
        for item, state in zip(result, states, strict=True):
            _with_states(title, share, item, state, kwargs)
        return result
    if gives == PARTIAL:
        if title not in ("sum", "nansum") and kwargs.get("reduction") != "sum":
            refuse(title, share)
        return as_share(result, share._replace(state=PARTIAL))
    if isinstance(gives, Sliced):
        if result.shape[gives.axis] != gives.layout.counts[share.origin.group.rank]:
            refuse(title, share)
        assert isinstance(share.state, Sliced)
        in_order = share.in_order and gives.layout == share.state.layout
        return as_share(result, share._replace(state=gives, in_order=in_order))
    refuse(title, share)


def _value(result: Any) -> Value:
    if isinstance(result, Tensor):
        return Value((tuple(result.shape),))
    return Value(items=tuple(map(_value, result)) if isinstance(result, tuple | list) else ())


def _whole_shape(x: Tensor, share: Share | None) -> tuple[int, ...]:
    shape = list(x.shape)
    if share is not None and isinstance(share.state, Sliced):
        shape[share.state.axis] = share.state.layout.total
    return tuple(shape)


def _shares(args: Arguments, kwargs: Named) -> list[tuple[Tensor, Share]]:
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


def _first(args: Arguments, kwargs: Named) -> Share | None:
    return next((share for _, share in _shares(args, kwargs)), None)


def _in_backward() -> bool:
    """Return whether autograd is at work, whose operations are right on shares."""
    return torch._C._current_graph_task_id() != -1
