"""Calls that torch.fx does not see: of creation functions and of autograd functions."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from hetmp.ops import Function, first_proxy
from hetmp.slicing.graph.proxies import SettingProxy, TensorProxy


@contextmanager
def recorded_autograd() -> Iterator[None]:
    """Record the user's own ``torch.autograd.Function``s as one operation each."""
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> object:
        proxy = first_proxy((args, kwargs))
        if proxy is None:
            return original.__func__(cls, *args, **kwargs)
        if cls is CheckpointFunction:
            function, _, *own = args
            tracer: Any = proxy.tracer
            with tracer.checkpoint():
                return function(*own)
        return proxy.tracer.create_proxy("call_function", cls.apply, args, kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


@contextmanager
def recorded_limits() -> Iterator[None]:
    """Record ``torch.finfo(x.dtype).min`` and the like."""
    originals = {"finfo": torch.finfo, "iinfo": torch.iinfo}

    def recorded(limit: Function, original: Function) -> Function:
        def ask(dtype: object = None) -> object:
            if type(dtype) is SettingProxy:
                return _Limits(limit, dtype)
            return original() if dtype is None else original(dtype)

        return ask

    torch.finfo = recorded(_float_limit, torch.finfo)  # type: ignore[misc, assignment]
    torch.iinfo = recorded(_integer_limit, torch.iinfo)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


class _Limits:
    """The limits of a dtype, each of them recorded when it is asked for."""

    def __init__(self, limit: Function, dtype: SettingProxy) -> None:
        self._limit, self._dtype = limit, dtype

    def __getattr__(self, name: str) -> object:
        tracer = self._dtype.tracer
        return tracer.create_proxy("call_function", self._limit, (self._dtype, name), {})


def _float_limit(dtype: torch.dtype, name: str) -> object:
    return getattr(_FINFO(dtype), name)


def _integer_limit(dtype: torch.dtype, name: str) -> object:
    return getattr(_IINFO(dtype), name)


_FINFO, _IINFO = torch.finfo, torch.iinfo  # while a module is traced, others are in their place


_CREATION = "arange empty eye full linspace ones rand randint randn randperm tensor zeros"


_SHAPING = "expand repeat reshape view"
"""Methods of a tensor that may take sizes, which torch would not see if the tensor is a constant.

torch's own code looks sizes up as numbers there.
"""

_TAKING = ("as_tensor", "asarray")
"""Functions that give a tensor as it is."""


@contextmanager
def recorded_creation() -> Iterator[None]:
    """Record ``torch.zeros(x.shape[0], 3)`` and the like, which torch.fx would not see."""
    with torch.device("meta"):
        torch.empty(0)  # torch remembers, once and for all, what a device is for: not our stand-ins
    functions = {name: getattr(torch, name) for name in (*_CREATION.split(), *_TAKING)}
    methods = {name: getattr(torch.Tensor, name) for name in _SHAPING.split()}

    def recorded(original: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(original)
        def create(*args: object, **kwargs: object) -> object:
            proxy = first_proxy((args, kwargs))
            if proxy is None:
                return original(*args, **kwargs)
            if original.__name__ in _TAKING and type(args[0]) is TensorProxy and not kwargs:
                return args[0]
            return proxy.tracer.create_proxy("call_function", original, args, kwargs)

        return create

    def recorded_method(name: str, original: Function) -> Function:
        @functools.wraps(original)
        def shape(*args: object, **kwargs: object) -> object:
            proxy = first_proxy((args[1:], kwargs))
            if proxy is None:
                return original(*args, **kwargs)
            return proxy.tracer.create_proxy("call_method", name, args, kwargs)

        return shape

    try:
        for name, original in functions.items():
            setattr(torch, name, recorded(original))
        for name, original in methods.items():
            setattr(torch.Tensor, name, recorded_method(name, original))
        yield
    finally:
        for name, original in functions.items():
            setattr(torch, name, original)
        for name in methods:
            delattr(torch.Tensor, name)  # they are those of its base
