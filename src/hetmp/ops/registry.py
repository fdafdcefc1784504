"""The tables of rules, by layer class, function and method, and how users add to them."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx, nn

from hetmp.core.errors import HetmpError
from hetmp.ops.call import Call, Function
from hetmp.ops.fallback import Whole
from hetmp.ops.rule import LayerForm, Rule

_Target = TypeVar("_Target", bound=Function)
_Rule = TypeVar("_Rule", bound=Rule[Any])
"""A rule for layers of any kind: it is asked about those that it is registered for alone."""

_layers: dict[type[nn.Module], Rule] = {}
_functions: dict[object, Rule] = {}
_methods: dict[str, Rule] = {}


def rule_for(target: nn.Module | Function | str) -> Rule | None:
    """Return the rule of a layer's exact class, a function or a method's name, or None.

    A subclass of a layer may do anything.
    """
    if isinstance(target, nn.Module):
        return _layers.get(type(target))
    return _methods.get(target) if isinstance(target, str) else _functions.get(_key(target))


def shares_memory(target: nn.Module | Function | str, operands: int = 1) -> bool:
    """Return whether the result of a layer, function or method may share operands' memory.

    Args:
        operands: how many tensors it is called with.
    """
    if isinstance(target, nn.Module):
        names = {kind.__name__ for kind in type(target).__mro__}
        rules = (rule for kind, rule in _layers.items() if isinstance(target, kind))
        return any(names & set(rule.views) for rule in rules)
    title, own = getattr(target, "__name__", target), rule_for(target)
    # torch.swapdims has no rule, and does what the method of its name does, which has one.
    asked = _all_rules() if own is None else (own,)
    return any(
        title in rule.views or (operands == 1 and title in rule.views_of_one) for rule in asked
    )


def draws(call: Call) -> bool:
    """Return whether a call that is computed whole may draw random numbers."""
    return call.layer is not None or any(call.title in rule.random for rule in _all_rules())


def may_draw(call: Call) -> bool:
    """Return whether a call that is computed whole may draw random numbers, as far as one knows."""
    return draws(call) or runs_own_code(call)


_LIBRARIES = ("", "_operator", "builtins", "hetmp", "math", "operator", "torch")
"""Packages whose functions and layers are known to draw, or not to."""


def runs_own_code(call: Call) -> bool:
    """Return whether a call runs code that is neither torch's nor hetmp's: it may do anything."""
    if call.layer is not None:
        return any(_is_own(type(part)) for part in call.layer.modules())
    return not isinstance(call.target, str) and _is_own(_key(call.target))


def _is_own(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(target).partition(".")[0] not in ("aten", "prim", "prims")
    if isinstance(target, torch.jit.ScriptFunction) or (
        isinstance(target, type) and issubclass(target, fx.GraphModule | torch.jit.ScriptModule)
    ):
        return True
    return (getattr(target, "__module__", None) or "").partition(".")[0] not in _LIBRARIES


def initial_value(layer: nn.Module, buffer: str) -> float | None:
    """Return the value of a *buffer* of *layer* before the first batch; None if unknown."""
    rules = (_layers[kind] for kind in type(layer).__mro__ if kind in _layers)
    values = (rule.initial_buffers.get(buffer) for rule in (*rules, Whole()))
    return next((value for value in values if value is not None), None)


def _all_rules() -> tuple[Rule, ...]:
    """Every rule there is, and that of what has none."""
    rules = (*_layers.values(), *_functions.values(), *_methods.values())
    return (Whole(), *dict.fromkeys(rules))


def layer_form(function: Function | str) -> LayerForm | None:
    """Return how a *function*'s arguments make a layer; None if no rule says."""
    if isinstance(function, str):
        return None
    forms = (rule.forms.get(function) for rule in dict.fromkeys(_layers.values()))
    return next((form for form in forms if form is not None), None)


def known_layers() -> tuple[type[nn.Module], ...]:
    """Return every layer class that has a rule now."""
    return tuple(_layers)


def register(rule: _Rule, *targets: Function | str, replace: bool = False) -> _Rule:
    """Make *rule* the rule of *targets*, in every model that is sliced from now on.

    Every rank must do it. A function of the user's own must be one that torch.fx keeps as one
    operation: see ``operator``.

    Args:
        rule: a rule, not its class.
        targets: ``nn.Module`` classes, ``torch.autograd.Function`` classes, functions, and names
            of tensor methods; those that the rule itself names if none are given.
        replace: whether it may take the place of another rule.

    Returns:
        *rule* itself.

    Raises:
        HetmpError: *rule* is not a rule; there are no targets; a target cannot have a rule, or
            has another one. Nothing is registered then.
    """
    candidate: object = rule
    if not isinstance(candidate, Rule):
        made = f": give {candidate.__name__}()" if isinstance(candidate, type) else ""
        raise HetmpError(f"only a hetmp.ops.Rule can be registered, got {candidate!r}{made}")
    named = targets or (*rule.layers, *rule.functions, *rule.methods)
    if not named:
        raise HetmpError(
            f"{_title(rule)} names no layers, functions or methods: give register its targets"
        )
    for target in named:
        known = _table(target).get(_key(target))
        if known not in (None, rule) and not replace:
            raise HetmpError(
                f"{_title(known)} is already the rule of {_shown(target)}: give register "
                f"replace=True to put {_title(rule)} in its place"
            )
    for target in named:
        _table(target)[_key(target)] = rule
    return rule


def operator(rule: Rule, *, replace: bool = False) -> Callable[[_Target], _Target]:
    """Decorate a function or an ``nn.Module`` class, to make *rule* its rule.

    A decorated function is one operation of a model that calls it; otherwise torch.fx would look
    inside.

    Raises:
        HetmpError: see ``register``.
    """

    def decorate(target: _Target) -> _Target:
        is_layer = isinstance(target, type) and issubclass(target, nn.Module)
        registered = target if is_layer else _recorded(target)
        register(rule, registered, replace=replace)
        return registered

    return decorate


def _recorded(function: object) -> Any:
    """Wrap *function* so that it is recorded as one call where torch.fx traces."""
    if not inspect.isfunction(function):
        raise HetmpError(f"operator decorates functions and nn.Module classes, got {function!r}")

    @functools.wraps(function)
    def called(*args: object, **kwargs: object) -> object:
        proxy = first_proxy((args, kwargs))
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", called, args, kwargs)

    return called


def first_proxy(structure: Any) -> fx.Proxy | None:
    """Return the first stand-in for a value in *structure*, if torch.fx traces; else None."""
    proxies: list[fx.Proxy] = []

    def note(item: object) -> Any:
        if isinstance(item, fx.Proxy):
            proxies.append(item)
        return item

    fx.node.map_aggregate(structure, note)
    return proxies[0] if proxies else None


def _table(target: object) -> dict[Any, Rule]:
    """Return the table that *target* belongs in."""
    if isinstance(target, str):
        if not hasattr(torch.Tensor, target):
            raise HetmpError(f"tensors have no method {target!r}: give the name of one they have")
        return _methods
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _layers
    if isinstance(target, nn.Module) or not callable(target):
        raise HetmpError(
            f"a rule is for layer classes, functions and names of methods, got {target!r}"
        )
    return _functions


def _key(target: object) -> object:
    """Return the key of a target: for the ``apply`` of an ``autograd.Function``, the class."""
    owner = getattr(target, "__self__", None)
    return owner if isinstance(owner, type) and issubclass(owner, _Autograd) else target


_Autograd = torch.autograd.Function


def _title(rule: object) -> str:
    return type(rule).__name__


def _shown(target: object) -> str:
    return repr(getattr(target, "__name__", target))
