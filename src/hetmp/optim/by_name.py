"""Optimizers by name, with options from a file or a command line, checked in words."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import unknown_name
from hetmp.optim.layerwise import LAMB, LARS
from hetmp.slicing import SlicedModel
from hetmp.slicing.optimizer_guard import REFUSED as REFUSED

_ELEMENTWISE = (
    *("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
"""torch's optimizers that do to each number what that number's gradient says: right on slices."""

_CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    name.lower(): getattr(torch.optim, name) for name in _ELEMENTWISE if hasattr(torch.optim, name)
}
_CLASSES |= {"lamb": LAMB, "lars": LARS}

OPTIMIZERS = tuple(sorted(_CLASSES))
"""The names that ``make_optimizer`` knows, for the command line."""

_GIVEN = ("self", "params", "model", "lr")


def make_optimizer(
    model: SlicedModel, name: str, lr: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Make an optimizer of all parameters of a sliced model. No communication.

    Args:
        model: made by ``slice_model``.
        name: one of ``OPTIMIZERS``, in any case.
        lr: the learning rate.
        options: keyword arguments of the optimizer's class: for torch's as its documentation has
            them, else see ``LARS`` and ``LAMB``. Lists are taken as tuples.

    Raises:
        HetmpError: an optimizer that is unknown or that is wrong on slices, an option that it does
            not have, a value that it does not take.
    """
    name = name.lower()
    for refused, reason in REFUSED.items():
        if name == refused.lower() and name not in _CLASSES:
            raise HetmpError(f"the optimizer {name} is wrong on slices: {reason}")
    if name not in _CLASSES:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    make = _CLASSES[name]
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(make).parameters.items()
        if key not in _GIVEN
    }
    checked = {key: _checked(name, key, value, known) for key, value in options.items()}
    target = model if name in ("lamb", "lars") else list(model.parameters())
    try:
        return make(target, lr=lr, **checked)
    except _MISTAKES as error:
        raise HetmpError(
            _refusal_of(name, error, lambda **some: make(target, **some), lr, checked)
        ) from None


def numbers_kept(name: str, options: Mapping[str, Any]) -> float:
    """Return how many numbers an optimizer keeps for each parameter from step to step.

    1 for SGD with momentum, 2 for AdamW. Of LARS and LAMB, what they are known to keep.

    Args:
        name: one of ``OPTIMIZERS``, in any case.
        options: keyword arguments of the optimizer's class.
    """
    name, size = name.lower(), 64
    if name in _KEPT_LAYERWISE:
        return _KEPT_LAYERWISE[name]
    weight = torch.nn.Parameter(torch.zeros(size))
    weight.grad = torch.zeros(size)
    optimizer = _CLASSES[name]([weight], lr=0.0, **options)
    optimizer.step()
    kept = (value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
    return sum(value.numel() for value in kept if value.numel() > 1) / size


_KEPT_LAYERWISE = {"lars": 1.0, "lamb": 2.0}

_MISTAKES = (ValueError, TypeError, IndexError, RuntimeError, AssertionError)
"""Errors of torch's optimizers for values that they refuse."""


def _checked(name: str, key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """Return an option as the class takes it; refuse values that torch would not notice."""
    if key not in known:
        raise unknown_name(f"option of {name}", key, known)
    if key == "differentiable" and value:
        raise HetmpError(
            f"{name}: differentiable=True needs gradients through a step, and the exchanges "
            "between ranks have none: leave it out"
        )
    value, default = tuple(value) if isinstance(value, list) else value, known[key]
    if isinstance(default, bool):
        wanted, right = "true or false", isinstance(value, bool)
    elif isinstance(default, int | float):
        wanted, right = "a number", _is_number(value)
    elif isinstance(default, tuple):
        wanted = f"{len(default)} numbers"
        right = (
            isinstance(value, Sequence)
            and len(value) == len(default)
            and all(_is_number(item) for item in value)
        )
    else:
        return value
    if not right:
        raise HetmpError(f"{name}: {key} is {wanted}, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)


def _refusal_of(
    name: str,
    error: Exception,
    make: Callable[..., Any],
    lr: float,
    options: Mapping[str, Any],
) -> str:
    """Return the message of *error*, with the option that causes it even alone."""
    if isinstance(error, HetmpError):
        return str(error)
    for some in ({"lr": lr}, *({"lr": lr, key: value} for key, value in options.items())):
        try:
            make(**some)
        except _MISTAKES as again:
            if str(again) == str(error):
                key = list(some)[-1]
                return f"{name}: {key} = {some[key]!r} is refused: {error}"
    return f"{name}: {', '.join(f'{k} = {v!r}' for k, v in options.items())}: {error}"
