"""Elementwise functions, operators and methods: every one that has a rule, on two activations."""

import operator

import torch
from torch.nn import functional as F

from hetmp import ops

FUNCTIONS = {function for rule in ops._RULES for function in rule.functions}
METHODS = {method for rule in ops._RULES for method in rule.methods}

UNARY = """
neg negative abs absolute square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos
tan sinh cosh asin acos atan erf erfc sigmoid tanh relu ceil floor round trunc frac sign sgn
nan_to_num isnan isinf isfinite logical_not logit selu celu clone detach zeros_like ones_like
"""
BINARY = """
add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow atan2 maximum
minimum fmax fmin lt le eq ne gt ge rsub logical_and logical_or logical_xor
"""
OPERATORS = (
    "add sub mul truediv floordiv mod pow lt le eq ne gt ge iadd isub imul itruediv imod ipow"
)
MASKS = "and_ or_ xor iand ior ixor"
ACTIVATIONS = """
relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh hardshrink
softshrink tanhshrink sigmoid logsigmoid tanh softplus softsign relu_ elu_ leaky_relu_ selu_ celu_
hardtanh_
"""
CASTS = "float double half bfloat16 int long bool contiguous requires_grad_"

# Each takes two tensors and gives one: what has more arguments, or others than tensors.
MORE = {
    "clamp": lambda f, x, y: f(x, 0.3, 0.6),
    "clip": lambda f, x, y: f(x, max=0.6),
    "clamp_min": lambda f, x, y: f(x, y),
    "clamp_max": lambda f, x, y: f(x, 0.5),
    "where": lambda f, x, y: f(x > 0.5, x, y),
    "lerp": lambda f, x, y: f(x, y, 0.3),
    "addcmul": lambda f, x, y: f(x, y, y, value=0.5),
    "addcdiv": lambda f, x, y: f(x, y, y + 1, value=-0.5),
    "full_like": lambda f, x, y: f(x, 0.5),
    "threshold": lambda f, x, y: f(x, 0.5, 0.1),
    "threshold_": lambda f, x, y: f(x, 0.5, 0.1),
}


def unary(f):
    return lambda x, y: f(x * 0.9)  # so that what works in place has its own


def binary(f):
    return lambda x, y: f(x * 0.9, y)


def floored(f):
    return lambda x, y: f((x * 4).detach(), y.detach())  # torch has no derivative of it


def masking(f):
    return lambda x, y: f(x > 0.5, y > 0.5)


def more(name, f):
    return lambda x, y: MORE[name](f, x * 0.9, y)


def method(name):
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def functions() -> dict:
    """Every elementwise function of torch."""
    found = {}
    for home, unaries, binaries in ((torch, UNARY, BINARY), (operator, "neg pos abs", OPERATORS)):
        title = home.__name__
        found |= {f"{title}.{name}": unary(getattr(home, name)) for name in unaries.split()}
        found |= {f"{title}.{name}": binary(getattr(home, name)) for name in binaries.split()}
    found |= {f"operator.{name}": masking(getattr(operator, name)) for name in MASKS.split()}
    found["operator.floordiv"] = floored(operator.floordiv)
    found["operator.ifloordiv"] = floored(operator.ifloordiv)
    found["torch.floor_divide"] = floored(torch.floor_divide)
    found["operator.invert"] = lambda x, y: ~(x > y)
    for name in MORE:
        home = torch if hasattr(torch, name) and "threshold" not in name else F
        found[f"{home.__name__}.{name}"] = more(name, getattr(home, name))
    found |= {f"F.{name}": unary(getattr(F, name)) for name in ACTIVATIONS.split()}
    return found


def methods() -> dict:
    """Every elementwise method of a tensor, and those that work in place."""
    found = {}
    for name in (*UNARY.split(), *BINARY.split(), *MORE, *CASTS.split()):
        kind = more if name in MORE else unary if name in (UNARY + CASTS).split() else binary
        for form in (name, f"{name}_"):
            if form in METHODS:
                found[form] = kind(name, method(form)) if kind is more else kind(method(form))
    found["where"] = lambda x, y: x.where(y > 0.5, y)
    found["masked_fill"] = lambda x, y: x.masked_fill(y > 0.5, 0.1)
    found["masked_fill_"] = lambda x, y: x.clone().masked_fill_(y > 0.5, 0.1)
    found["to"] = lambda x, y: x.to(torch.float32).to(y)
    found["type"] = lambda x, y: x.type(torch.float32)
    found["type_as"] = lambda x, y: x.float().type_as(y)
    found |= {name: floored(method(name)) for name in ("floor_divide", "floor_divide_")}
    return found


WORKS = {**functions(), **{f".{name}": work for name, work in methods().items()}}
