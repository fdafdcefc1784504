"""Elementwise functions of any number of tensors, and concatenation."""

import operator

import torch
from torch.nn import functional as F

from hetmp.core.state import FULL, L, OperandState, Sliced, States
from hetmp.ops.call import Call, Flow, Function
from hetmp.ops.rule import Rule

_OPERATORS = (
    "add sub mul truediv floordiv mod pow neg pos abs lt le eq ne gt ge and_ or_ xor invert"
)
_IN_PLACE = "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor"
_TENSOR = """
add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow neg negative
abs absolute square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh
asin acos atan atan2 erf erfc sigmoid tanh relu ceil floor round trunc frac sign sgn clamp clip
clamp_min clamp_max clone detach maximum minimum fmax fmin where lerp addcmul addcdiv nan_to_num
isnan isinf isfinite logical_and logical_or logical_xor logical_not lt le eq ne gt ge rsub logit
softplus selu celu zeros_like ones_like full_like
"""
_FUNCTIONAL = """
relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh hardshrink
softshrink tanhshrink sigmoid logsigmoid tanh softplus softsign threshold relu_ elu_ leaky_relu_
selu_ celu_ hardtanh_ threshold_
"""
_METHODS_ONLY = """
float double half bfloat16 int long bool to type type_as contiguous masked_fill masked_fill_
requires_grad_ cpu expand_as
"""


def _functions() -> tuple[Function, ...]:
    named = [(operator, f"{_OPERATORS} {_IN_PLACE}"), (F, _FUNCTIONAL), (torch, _TENSOR)]
    return tuple(
        getattr(home, name)
        for home, names in named
        for name in names.split()
        if hasattr(home, name)
    )


class Elementwise(Rule):
    """Elementwise functions: operands that are broadcast together are cut alike.

    The largest sliced operand decides how; a full operand is cut without an exchange, and one
    that is broadcast along the cut axis stays full.
    """

    functions = _functions()
    views = (
        *("detach", "contiguous", "to", "type", "type_as", "cpu", "expand_as"),
        *("float", "double", "half", "bfloat16", "pos"),
    )
    methods = tuple(
        name
        for plain in (*_TENSOR.split(), *_METHODS_ONLY.split())
        for name in (plain, f"{plain}_")
        if hasattr(torch.Tensor, name)
    )

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        flow = _alike(call, states, call.result.dims, shift=0)
        if flow is None or not isinstance(flow.gives, Sliced):
            return None
        axis, length = flow.gives.axis, flow.gives.layout.length
        if axis < 0 or call.result.shape[axis] not in (None, length):
            return None  # an operand that tells the dtype alone, as in x.type_as(y)
        return flow


def _alike(call: Call, states: States[L], dims: int, shift: int) -> Flow[L] | None:
    """Cut all operands along one axis, counted from the right; *shift* axes are added."""
    lead = _lead(call, states)
    if lead is None:
        return None
    layout, from_right = lead
    wants: dict[str, OperandState[L]] = {}
    for name in states:
        value = call.values[name]
        axis = value.dims + from_right
        size = value.shape[axis] if axis >= 0 else 1
        if size == layout.length and (size != 1 or isinstance(states[name], Sliced)):
            wants[name] = Sliced(layout, axis)
        elif size == 1:
            wants[name] = FULL
        else:
            return None
    return Flow(wants, Sliced(layout, dims - shift + from_right))


def _lead(call: Call, states: States[L]) -> tuple[L, int] | None:
    """Return the layout of the largest sliced operand, and its axis counted from the right."""
    sliced = [
        (call.values[name].image_bytes, state.layout, state.axis - call.values[name].dims)
        for name, state in states.items()
        if isinstance(state, Sliced) and call.values[name].is_tensor
    ]
    if not sliced or not all(call.values[name].is_tensor for name in states):
        return None
    _, layout, from_right = max(sliced, key=lambda lead: (lead[1].length or 0, lead[0]))
    return layout, from_right


class Concatenation(Rule):
    """Concatenation: a piece per operand on the cut axis; on other axes, all are cut alike."""

    joins = True
    functions = tuple(
        getattr(torch, name) for name in ("cat", "concat", "concatenate") if hasattr(torch, name)
    )

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        operands = _listed(call)
        if operands is None or not all(call.values[name].is_tensor for name in states):
            return None
        dims = call.result.dims
        dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
        sliced = [state for state in states.values() if isinstance(state, Sliced)]
        if not isinstance(dim, int) or not sliced:
            return None
        dim %= dims
        if sliced[0].axis != dim:
            flow = _alike(call, states, dims, shift=0)
            if flow is None or not isinstance(flow.gives, Sliced) or flow.gives.axis == dim:
                return None  # the largest operand is cut along the axis that is joined
            return flow
        wants: dict[str, Sliced[L]] = {}
        for name, state in states.items():
            if isinstance(state, Sliced) and state.axis == dim:
                wants[name] = state
                continue
            size = call.values[name].shape[dim]
            if size is None:
                return None
            wants[name] = Sliced(sliced[0].layout.like(size), dim)
        layout = sliced[0].layout.joined([wants[name].layout for name in operands])
        return None if layout is None else Flow(wants, Sliced(layout, dim))


class Stacking(Rule):
    """``stack``: a new axis; all operands are cut alike."""

    functions = (torch.stack,)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        dim = call.argument(1, "dim", 0)
        if _listed(call) is None or not isinstance(dim, int):
            return None
        flow = _alike(call, states, call.result.dims, shift=1)
        if flow is None or not isinstance(flow.gives, Sliced):
            return None
        axis = flow.gives.axis
        behind = axis + 1 if dim % call.result.dims <= axis else axis
        return Flow(flow.wants, Sliced(flow.gives.layout, behind))


def _listed(call: Call) -> list[str] | None:
    """Return the names of the operands, in order, where they are listed one by one."""
    listed = call.argument(0, "tensors")
    if not isinstance(listed, tuple | list):
        return None
    names = [getattr(item, "name", None) for item in listed]
    return None if None in names else [str(name) for name in names]
