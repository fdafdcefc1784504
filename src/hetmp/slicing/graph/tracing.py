"""torch.fx on a module in both of its modes."""

import functools
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import first_proxy, known_layers, mapped, rule_for
from hetmp.slicing.graph.functional import as_layers
from hetmp.slicing.graph.graph import place
from hetmp.slicing.graph.inputs import Inputs, proxied
from hetmp.slicing.graph.meta_run import (
    attribute,
    modes_kept,
    on_meta,
    run_layer,
    run_method,
    without_data,
)
from hetmp.slicing.graph.proxies import (
    KnownProxy,
    Proxy,
    TensorProxy,
    confirm,
    instances,
    known,
    no_instances,
)
from hetmp.slicing.graph.shapes import misfit
from hetmp.slicing.graph.subclasses import is_unfolded

_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
"""Folders whose lines are not the user's."""

_LEAF = "_hetmp_leaf"


_Module = TypeVar("_Module", nn.Module, type[nn.Module])


def leaf(module: _Module) -> _Module:
    """Mark a module, or a class of modules, as one operation: torch.fx does not look inside.

    Every rank computes it whole, from all channels, so the result stays the same. For what
    torch.fx cannot trace, such as control flow on an activation's values.

    Returns:
        *module* itself, so that it can be used as a decorator of a class.
    """
    setattr(module, _LEAF, True)
    return module


def trace_modes(
    skeleton: nn.Module, inputs: Inputs, examples: Mapping[str, Tensor]
) -> tuple[fx.Graph, fx.Graph]:
    """Trace the module in training and in evaluation; one object for both if they are alike.

    Args:
        examples: of the inputs, by name; without them, nothing can depend on a size.

    Raises:
        HetmpError: torch.fx cannot trace the module, the message names the line; or the examples
            do not fit it.
    """
    drawn = _generators()
    graphs = []
    try:
        with modes_kept(skeleton), instances(), _recorded_creation(), _recorded_autograd():
            for mode in (True, False):
                skeleton.train(mode)
                graphs.append(_Tracer(inputs, examples).trace(skeleton))
            _check_buffers(skeleton)
    except HetmpError:
        raise
    except Exception as error:
        line = users_line("".join(traceback.format_tb(error.__traceback__)))
        raise HetmpError(
            f"torch.fx cannot trace {inputs.title}{', at ' if line else ''}{line}: "
            f"{str(error).split('. ')[0]}. " + _remedy(skeleton, error, bool(examples))
        ) from error
    if drawn != _generators():
        raise HetmpError(
            f"{inputs.title} draws random numbers that depend on no activation: they would be "
            "drawn only once, when the module is read; draw them with torch.rand_like or in an "
            "activation's shape, or mark the module that draws them with hetmp.leaf(module)"
        )
    as_layers(skeleton, graphs)
    training, evaluation = graphs
    same = _written(training, skeleton) == _written(evaluation, skeleton)
    return training, training if same else evaluation


def _remedy(skeleton: nn.Module, error: Exception, by_example: bool) -> str:
    """Return advice on *error*, which was raised while *skeleton* was traced."""
    names = {id(part): path for path, part in skeleton.named_modules() if path}
    at = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if isinstance(part, nn.Module) and id(part) in names:
            at = f", {place(names[id(part)], part)},"
    sizes = "" if by_example else "Code that depends on a size needs an example_input. "
    return (
        f"{sizes}Code that depends on an activation's values cannot be sliced: mark its "
        f"module{at} with hetmp.leaf(module) to keep it whole"
    )


def _generators() -> list[Any]:
    """Return the states of the random generators that a module may draw from."""
    _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's choice
    return [torch.get_rng_state().tolist(), random.getstate(), list(keys), position]


def _check_buffers(skeleton: nn.Module) -> None:
    buffer: Any
    for name, buffer in skeleton.named_buffers():
        if isinstance(buffer, fx.Proxy):
            line = users_line(buffer.node.stack_trace or "")
            raise HetmpError(
                f"{name!r} is assigned{' at ' if line else ''}{line}: a module that changes its "
                "own state cannot be sliced; mark it with hetmp.leaf"
            )


class _Tracer(fx.Tracer):
    """Keeps layers with a rule whole, and runs each recorded node on an example if any."""

    proxy_buffer_attributes = True  # what is computed from a buffer belongs to the graph

    def __init__(self, inputs: Inputs, examples: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._inputs, self._examples = inputs, examples
        self._running = False
        self._confirmed: set[fx.Node] = set()
        self._asked: dict[tuple[int, int], list[tuple[fx.Node, fx.Node]]] = {}
        self.trace_asserts = not examples

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def create_node(self, *described: Any, **named: Any) -> fx.Node:
        """Record a node with the user's line, which errors name.

        torch.fx's own ``record_stack_traces`` formats the whole stack: a fifth of reading a module.
        """
        node = super().create_node(*described, **named)
        node.stack_trace = _users_frame()
        return node

    def create_arg(self, a: Any) -> Any:
        # Some stand-ins look like tensors, which torch.fx would take for constants.
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any
    ) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        if not self._examples or target is confirm:
            return proxy
        try:
            value = self._run(kind, target, _values(args), _values(kwargs))
        except Exception as error:
            raise misfit(self._examples, error) from error
        return known(proxy.node, self, value)

    def confirm(self, proxy: KnownProxy, call: tuple[int, int] | None = None) -> None:
        """Record that the module depends on *proxy*'s value, as the *call* of a frame asks."""
        if proxy.node in self._confirmed:
            return
        self._confirmed.add(proxy.node)
        line = users_line("".join(traceback.format_stack()))
        made = self.create_proxy("call_function", confirm, (proxy, proxy.value, line), {})
        if call is not None:
            self._asked.setdefault(call, []).append((proxy.node, made.node))

    def forget(self, call: tuple[int, int]) -> None:
        """Undo ``confirm`` for a *call* that used no value: it is recorded with its stand-ins."""
        for node, confirming in self._asked.pop(call, ()):
            self._confirmed.discard(node)
            self.graph.erase_node(confirming)

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a node on the meta device and return its value."""
        self._running = True
        try:
            with without_data(), no_instances():
                if kind == "placeholder":
                    return torch.empty_like(self._examples[target], device="meta")
                if kind == "get_attr":
                    return on_meta(attribute(self.root, target))
                if kind == "call_module":
                    return run_layer(self.root.get_submodule(target), args, kwargs)
                if kind == "call_method":
                    return run_method(target, args, kwargs)
                return target(*args, **kwargs)
        finally:
            self._running = False

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._running else super().call_module(
            m, forward, args, kwargs
        )  # fmt: skip

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if getattr(m, _LEAF, False) or rule_for(m) is not None:
            return True
        if isinstance(m, known_layers()):
            return not is_unfolded(m)
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


def _values(structure: Any) -> Any:
    """Return arguments with stand-ins replaced by their values."""

    def value(item: Any) -> Any:
        return item.value if isinstance(item, KnownProxy) else on_meta(item)

    return mapped(structure, value)


@contextmanager
def _recorded_autograd() -> Iterator[None]:
    """Record the user's own ``torch.autograd.Function``s as one operation each."""
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = first_proxy((args, kwargs))
        if proxy is None:
            return original.__func__(cls, *args, **kwargs)
        return proxy.tracer.create_proxy("call_function", cls.apply, args, kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


_CREATION = "arange empty eye full linspace ones rand randint randn randperm tensor zeros"


_TAKING = ("as_tensor", "asarray")
"""Functions that give a tensor as it is."""


@contextmanager
def _recorded_creation() -> Iterator[None]:
    """Record ``torch.zeros(x.shape[0], 3)`` and the like, which torch.fx would not see."""
    with torch.device("meta"):
        torch.empty(0)  # torch remembers, once and for all, what a device is for: not our stand-ins
    originals = {name: getattr(torch, name) for name in (*_CREATION.split(), *_TAKING)}

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def create(*args: Any, **kwargs: Any) -> Any:
            proxy = first_proxy((args, kwargs))
            if proxy is None:
                return original(*args, **kwargs)
            if original.__name__ in _TAKING and type(args[0]) is TensorProxy and not kwargs:
                return args[0]
            return proxy.tracer.create_proxy("call_function", original, args, kwargs)

        return create

    try:
        for name, original in originals.items():
            setattr(torch, name, recorded(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _written(graph: fx.Graph, skeleton: nn.Module) -> list[str]:
    """Write a graph as text to compare: values by position, constants by content."""
    places = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(constant := attribute(skeleton, target), Tensor):
            target = target if constant.is_meta else f"{constant.dtype} {constant.tolist()}"
        arguments = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
        lines.append(f"{node.op} {target} {arguments}")
    return lines


def _users_frame() -> str | None:
    """Return the innermost line of the user's that a forward pass runs, as stack traces print it.

    None where none does.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    users = frame
    while frame is not None and frame.f_code.co_name != "forward":
        frame = frame.f_back
    if users is None or frame is None:
        return None
    return f'File "{users.f_code.co_filename}", line {users.f_lineno}'


def users_line(stack: str) -> str:
    """Return the innermost line of the user's in a stack trace as Python prints it."""
    frames = re.findall(r'File "(.+)", line (\d+)', stack)
    users = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    return "{}:{}".format(*users[-1]) if users else ""
