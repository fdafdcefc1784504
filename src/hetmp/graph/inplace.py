"""Work in place: which calls change what they are given, and where that can be followed.

Behind ``y.relu_()`` whatever takes ``y`` takes the result, so a value never changes. What
shares memory with ``y`` without being ``y`` would change unseen; that is refused.
"""

import inspect
import operator
from typing import Any

from torch import fx, nn

from hetmp.errors import HetmpError
from hetmp.graph.tracing import users_line

_ARITHMETIC = "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift"

_OPERATORS = {getattr(operator, name) for name in _ARITHMETIC.split()}

_VIEWS = """
getitem view reshape flatten unflatten chunk split tensor_split unbind transpose permute squeeze
unsqueeze detach expand narrow contiguous t movedim swapaxes select to type float double dropout
"""

_VIEW_LAYERS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d)


def changed(node: fx.Node, skeleton: nn.Module) -> fx.Node | None:
    """The value that *node* changes in place and gives, or None.

    Raises:
        HetmpError: it assigns into part of an activation.
    """
    if node.target is operator.setitem:
        line = users_line(node.stack_trace or "")
        raise HetmpError(
            f"an assignment into part of an activation cannot be sliced{', at ' if line else ''}"
            f"{line}: write it with torch.cat or torch.where, or mark the module with hetmp.leaf"
        )
    if not _is_in_place(node, skeleton):
        return None
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return first if isinstance(first, fx.Node) else None


def _is_in_place(node: fx.Node, skeleton: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(skeleton.get_submodule(str(node.target)), "inplace", False))
    target: Any = node.target
    if node.op == "call_method":
        return str(target).endswith("_") and not str(target).endswith("__")
    if target in _OPERATORS or getattr(target, "__name__", "").endswith("_"):
        return True
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return bool(node.kwargs.get("inplace", False))
    return bool(bound.arguments.get("inplace", False))


def check_views(graph: fx.Graph, skeleton: nn.Module) -> None:
    """Refuse work in place on what shares memory with another value that is used afterwards.

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
                line = users_line(by.stack_trace or "")
                raise HetmpError(
                    f"{by.name!r}{' at ' if line else ''}{line} works in place on memory that "
                    f"{used.name!r} shares and {node.name!r} takes afterwards: that cannot be "
                    "sliced; work on a copy instead"
                )
        source = changed(node, skeleton)
        if source is not None:
            root = roots.get(source, source)
            same = written[root][1] if root in written else set()
            written[root] = node, same | {source, node}
            roots[node] = root
        elif node.all_input_nodes and _is_view(node, skeleton):
            first = node.all_input_nodes[0]
            roots[node] = roots.get(first, first)
            if roots[node] in written:
                written[roots[node]][1].add(node)
        else:
            roots[node] = node


def _is_view(node: fx.Node, skeleton: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(skeleton.get_submodule(str(node.target)), _VIEW_LAYERS)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _VIEWS.split()
