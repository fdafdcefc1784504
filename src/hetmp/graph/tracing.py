"""torch.fx on a module in both of its modes."""

import functools
import os
import re
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from hetmp.errors import HetmpError
from hetmp.graph.inputs import Inputs, proxied
from hetmp.ops import LAYERS

_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
"""Folders whose lines are not the user's."""

_LEAF = "_hetmp_leaf"

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
    modes = {path: module.training for path, module in skeleton.named_modules()}
    graphs = []
    try:
        for mode in (True, False):
            skeleton.train(mode)
            graphs.append(_Tracer(inputs).trace(skeleton))
    except Exception as error:
        line = users_line("".join(traceback.format_tb(error.__traceback__)))
        raise HetmpError(
            f"torch.fx cannot trace {inputs.title}{', at ' if line else ''}{line}: {error}. What "
            "depends on an activation's values cannot be sliced: mark the module that does it "
            "with hetmp.leaf(module) to keep it whole"
        ) from error
    finally:
        for path, module in skeleton.named_modules():
            module.training = modes[path]
    training, evaluation = graphs
    same = _written(training, skeleton) == _written(evaluation, skeleton)
    return training, training if same else evaluation


class _Tracer(fx.Tracer):
    record_stack_traces = True  # so that errors can name the user's line

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._inputs = inputs
        self.trace_asserts = True

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
        return functools.partial(root_fn, **kwargs), [self.root, *args]


def _written(graph: fx.Graph, skeleton: nn.Module) -> list[str]:
    """A graph as text, to compare; constants by their values."""
    lines = []
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "get_attr" and isinstance(constant := attribute(skeleton, target), Tensor):
            target = target if constant.is_meta else str(constant)
        lines.append(f"{node.op} {target} {node.args} {node.kwargs}")
    return lines


def attribute(module: nn.Module, path: str) -> Any:
    """What stands at a dotted path in *module*."""
    return functools.reduce(getattr, path.split("."), module)


def users_line(stack: str) -> str:
    """The innermost line of the user's in a stack trace as Python prints it."""
    frames = re.findall(r'File "(.+)", line (\d+)', stack)
    users = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    return "{}:{}".format(*users[-1]) if users else ""
