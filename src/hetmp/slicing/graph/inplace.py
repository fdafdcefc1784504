"""In-place work: which calls change an operand, and where that can be followed.

After ``y.relu_()`` every operation that takes ``y`` takes the result, so a value never changes. A
value that shares memory with ``y`` without being ``y`` would change unseen; that is refused.
"""

import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import Function, Value, assigned, shares_memory
from hetmp.slicing.graph.lines import at_line
from hetmp.slicing.graph.proxies import ASSIGNMENTS


class Changing:
    """A function of the user's that changes its first argument in place, and now returns it."""

    def __init__(self, function: Function) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.function(*args, **kwargs)
        return args[0]


def changed(node: fx.Node, skeleton: nn.Module, values: Mapping[str, Value]) -> fx.Node | None:
    """Return the tensor that *node* changes in place and returns, or None."""
    if not _is_in_place(node, skeleton):
        return None
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, fx.Node) and values[first.name].is_tensor else None


def _is_in_place(node: fx.Node, skeleton: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(skeleton.get_submodule(str(node.target)), "inplace", False))
    target: Any = node.target
    if node.op == "call_method":
        return str(target).endswith("_") and not str(target).endswith("__")
    if node.op != "call_function" or target in (*ASSIGNMENTS, assigned):
        return node.op == "call_function"
    if isinstance(target, Changing):
        return True
    if getattr(target, "__name__", "").endswith("_"):
        return target.__module__ != operator.add.__module__  # and_ and or_ only avoid a keyword
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return bool(node.kwargs.get("inplace", False))
    return bool(bound.arguments.get("inplace", False))


def check_memory(graph: fx.Graph, skeleton: nn.Module, values: Mapping[str, Value]) -> None:
    """Refuse in-place work on memory shared with another value that is used afterwards.

    Raises:
        HetmpError: naming the line.
    """
    roots: dict[fx.Node, fx.Node] = {}
    written: dict[fx.Node, tuple[fx.Node, set[fx.Node]]] = {}
    for node in graph.nodes:
        for used in node.all_input_nodes:
            root = roots.get(used, used)
            if root in written and used not in written[root][1]:
                by = written[root][0]
                raise HetmpError(
                    f"{by.name!r}{at_line(by.stack_trace)} changes memory in place that "
                    f"{used.name!r} shares and {node.name!r} reads afterwards: this cannot be "
                    "sliced; change a copy instead"
                )
        source = changed(node, skeleton, values)
        if source is not None:
            root = roots.get(source, source)
            if root.op == "get_attr":
                raise HetmpError(
                    f"{node.name!r}{at_line(node.stack_trace)} changes {str(root.target)!r} in "
                    "place: a module that changes its own state cannot be sliced; mark it with "
                    "hetmp.leaf"
                )
            same = written[root][1] if root in written else set()
            written[root] = node, same | {source, node}
            roots[node] = root
        elif node.all_input_nodes and _is_view(node, skeleton, values):
            first = node.all_input_nodes[0]
            roots[node] = roots.get(first, first)
            if roots[node] in written:
                written[roots[node]][1].add(node)
        else:
            roots[node] = node


def _is_view(node: fx.Node, skeleton: nn.Module, values: Mapping[str, Value]) -> bool:
    if node.name not in values or not values[node.name].holds_tensors:
        return False
    if node.op == "call_module":
        return shares_memory(skeleton.get_submodule(str(node.target)))
    operands: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), operands.append)
    tensors = sum(op.name in values and values[op.name].holds_tensors for op in operands)
    return node.op in ("call_function", "call_method") and shares_memory(node.target, tensors)
