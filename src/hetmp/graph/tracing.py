"""torch.fx on a module in both of its modes."""

import functools
import operator
import os
import random
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from hetmp.errors import HetmpError
from hetmp.graph.inputs import Inputs, proxied
from hetmp.ops import LAYERS

_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
"""Folders whose lines are not the user's."""

_LEAF = "_hetmp_leaf"

_ASSIGNED = "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift"

ASSIGNMENTS = tuple(
    getattr(operator, name) for name in _ASSIGNED.split() if hasattr(Tensor, f"__{name}__")
)
"""``+=`` and its kin, as far as they change a tensor in place."""

_Module = TypeVar("_Module", nn.Module, type[nn.Module])


def leaf(module: _Module) -> _Module:
    """Mark a module, or a class of modules, to be kept as one: torch.fx does not look inside.

    Every rank computes it whole, from all channels, so the result stays the same. For what
    torch.fx cannot trace, such as control flow on an activation's values.

    Returns:
        *module* itself, so that it can be used as a decorator of a class.
    """
    setattr(module, _LEAF, True)
    return module


def trace_modes(skeleton: nn.Module, inputs: Inputs) -> tuple[fx.Graph, fx.Graph]:
    """The graphs in training and in evaluation, the same object where they are alike.

    Raises:
        HetmpError: torch.fx cannot trace the module; the message names the line.
    """
    drawn = _generators()
    graphs = []
    try:
        with modes_kept(skeleton), _recorded_creation():
            for mode in (True, False):
                skeleton.train(mode)
                graphs.append(_Tracer(inputs).trace(skeleton))
            _check_buffers(skeleton)
    except HetmpError:
        raise
    except Exception as error:
        line = users_line("".join(traceback.format_tb(error.__traceback__)))
        raise HetmpError(
            f"torch.fx cannot trace {inputs.title}{', at ' if line else ''}{line}: {error}. What "
            "depends on an activation's values cannot be sliced: mark the module that does it "
            "with hetmp.leaf(module) to keep it whole"
        ) from error
    if drawn != _generators():
        raise HetmpError(
            f"{inputs.title} draws random numbers that no activation has a part in: they would be "
            "drawn once, when it is read; draw them with torch.rand_like or for an activation's "
            "shape, or mark the module that does it with hetmp.leaf(module)"
        )
    training, evaluation = graphs
    same = _written(training, skeleton) == _written(evaluation, skeleton)
    return training, training if same else evaluation


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Whatever mode *module* and its parts are put in inside, they come out as they were."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _generators() -> list[Any]:
    """The states of the generators that a module may draw from."""
    _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's choice
    return [torch.get_rng_state().tolist(), random.getstate(), list(keys), position]


def _check_buffers(skeleton: nn.Module) -> None:
    buffer: Any
    for name, buffer in skeleton.named_buffers():
        if isinstance(buffer, fx.Proxy):
            line = users_line(buffer.node.stack_trace or "")
            raise HetmpError(
                f"{name!r} is assigned{' at ' if line else ''}{line}: a state of the module's own "
                "cannot be sliced; mark the module with hetmp.leaf"
            )


class _Proxy(fx.Proxy):
    """Records assignments such as ``x += 1``, which torch.fx takes for work on a copy."""


def _recorded(function: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def record(self: fx.Proxy, *args: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    return record


for _function in (*ASSIGNMENTS, operator.setitem):
    setattr(_Proxy, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    record_stack_traces = True  # so that errors can name the user's line
    proxy_buffer_attributes = True  # what is computed from a buffer belongs to the graph

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._inputs = inputs
        self.trace_asserts = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass of a known layer is called as one: what it does inside is its own.
        if getattr(m, _LEAF, False) or isinstance(m, LAYERS):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        def proxy(name: str) -> Any:
            return self.create_proxy("placeholder", name, (), {})

        args, kwargs = proxied(self._inputs, proxy)

        def forward(*args: Any) -> Any:  # torch.fx looks at a function's own attributes
            return root_fn(*args, **kwargs)

        return forward, [self.root, *args]


_CREATION = "arange empty eye full linspace ones rand randint randn randperm zeros"


@contextmanager
def _recorded_creation() -> Iterator[None]:
    """Record ``torch.zeros(x.shape[0], 3)`` and its like: torch.fx sees only what takes tensors."""
    originals = {name: getattr(torch, name) for name in _CREATION.split()}

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def create(*args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []

            def find(item: Any) -> Any:
                if isinstance(item, fx.Proxy):
                    found.append(item)
                return item

            fx.node.map_aggregate((args, kwargs), find)
            if not found:
                return original(*args, **kwargs)
            return found[0].tracer.create_proxy("call_function", original, args, kwargs)

        return create

    try:
        for name, original in originals.items():
            setattr(torch, name, recorded(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _written(graph: fx.Graph, skeleton: nn.Module) -> list[str]:
    """A graph as text, to compare; values by their place in it, constants by their content."""
    places = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(constant := attribute(skeleton, target), Tensor):
            target = target if constant.is_meta else f"{constant.dtype} {constant.tolist()}"
        arguments = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        lines.append(f"{node.op} {target} {arguments}")
    return lines


def attribute(module: nn.Module, path: str) -> Any:
    """What stands at a dotted path in *module*."""
    return functools.reduce(getattr, path.split("."), module)


def users_line(stack: str) -> str:
    """The innermost line of the user's in a stack trace as Python prints it."""
    frames = re.findall(r'File "(.+)", line (\d+)', stack)
    users = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    return "{}:{}".format(*users[-1]) if users else ""
