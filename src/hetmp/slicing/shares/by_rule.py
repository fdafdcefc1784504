"""Operations that have a rule inside of a module: it says what they make of a share, too."""

import operator
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.testing
from torch import Tensor

from hetmp.core.state import FULL, PARTIAL, OperandState, Partial, Sliced
from hetmp.ops import Call, Ref, Value, mapped, rule_for
from hetmp.slicing.shares.arithmetic import summand
from hetmp.slicing.shares.operands import (
    Arguments,
    Named,
    asked_from,
    in_backward,
    shares_among,
    title_of,
    whole_shape,
)
from hetmp.slicing.shares.share import Share, as_share, share_of_tensor
from hetmp.slicing.shares.words import refuse

_TESTING = os.path.dirname(torch.testing.__file__)
"""Where torch compares tensors for a test, such as two ranks' shares."""


def check_index(title: str, x: Tensor, share: Share, index: object) -> None:
    """Refuse an index that takes a part of the cut axis.

    Raises:
        HetmpError: it does, or is a tensor.
    """
    whole = Value((whole_shape(x, share),))
    call = Call(operator.getitem, (Ref("x"), index), {}, {"x": whole}, whole)
    rule = rule_for(operator.getitem)
    assert rule is not None
    flow = None if isinstance(index, Tensor) else rule.flow(call, {"x": share.state})
    if flow is None or getattr(flow.gives, "layout", None) != getattr(share.state, "layout", None):
        refuse(title, share)


def by_rule(func: Callable[..., Any], args: Arguments, kwargs: Named) -> Any:
    """Compute an operation, and follow it by the rule that it has inside of a module.

    What the rule says is asked of whole tensors without data, so every rank decides alike.

    Raises:
        HetmpError: there is no rule, or the operation would need an exchange.
    """
    shares = shares_among(args, kwargs)
    if not shares or in_backward() or asked_from(_TESTING, 4):
        return func(*args, **kwargs)
    title, first = title_of(func), shares[0][1]
    if any(isinstance(share.state, Partial) for _, share in shares):
        return summand(title, args, kwargs, func(*args, **kwargs))
    target = operator.getitem if title == "getitem" else func
    rule = rule_for(target) or rule_for(title)
    if rule is None or kwargs.get("out") is not None:
        refuse(title, first)
    if title == "getitem":
        own = share_of_tensor(args[0])
        check_index("a part", args[0], first, args[1] if own is not None else args[0])
    values: dict[str, Value] = {}
    states: dict[str, OperandState] = {}

    def named(item: object) -> object:
        if not isinstance(item, Tensor):
            return item
        name, share = f"x{len(values)}", share_of_tensor(item)
        values[name] = Value((whole_shape(item, share),))
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
        shape = whole_shape(item, share_of_tensor(item))
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
