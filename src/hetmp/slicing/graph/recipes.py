"""Reads from recorded operations how a weight is computed from a module's own parameters."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from hetmp.ops import Call, Recipe, Ref, assigned, draws, mapped, value_of
from hetmp.ops.functions.metadata import Questions
from hetmp.slicing.graph.meta_run import attribute, run_method, without_data


class _Unsuited(Exception):
    """What is read is more than operations on parameters."""


def read_recipe(
    root: nn.Module, home: str, results: Mapping[str, fx.Node]
) -> tuple[Recipe, dict[str, Tensor]] | None:
    """Return how *results* are computed, and what they are like; None if more takes part.

    That is an activation, a layer, randomness or work in place.

    Args:
        root: the module that was traced, on the meta device.
        home: the path of the module whose parameters and buffers they may be computed from.
        results: the nodes of a graph, by what they are for.
    """
    reader = _Reader(root, f"{home}." if home else "")
    try:
        with without_data():
            for node in ancestors(results.values()):
                reader.read(node)
    except Exception:
        return None  # what fails here without data may still run as it stands
    values = {name: reader.values[node] for name, node in results.items()}
    if any(not isinstance(value, Tensor) for value in values.values()):
        return None
    shapes = {
        name: attribute(root, f"{reader.above}{own}").shape for name, own in reader.tensors.items()
    }
    by_name = {name: reader.names[node] for name, node in results.items()}
    return Recipe(reader.tensors, reader.constants, shapes, reader.calls, by_name), values


def ancestors(results: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the nodes *results* and all that they are computed from, each after what it takes.

    The order depends on nothing else that the graph computes.
    """
    done: dict[fx.Node, None] = {}
    ahead = [(node, False) for node in reversed(list(results))]
    while ahead:
        node, after_operands = ahead.pop()
        if after_operands:
            done[node] = None
        elif node not in done:
            ahead.append((node, True))
            ahead += [(operand, False) for operand in reversed(node.all_input_nodes)]
    return list(done)


class _Reader:
    """The parts of a recipe, as far as a graph was read."""

    def __init__(self, root: nn.Module, above: str) -> None:
        self.root, self.above = root, above
        self.values: dict[fx.Node, Any] = {}
        self.names: dict[fx.Node, str] = {}
        self.tensors: dict[str, str] = {}
        self.constants: dict[str, Tensor] = {}
        self.calls: dict[str, Call] = {}

    def read(self, node: fx.Node) -> None:
        """Add a node, after all that it takes."""
        if node.op == "get_attr":
            self.values[node] = self._attribute(node)
        elif node.op in ("call_function", "call_method"):
            self.values[node] = self._call(node)
        else:
            raise _Unsuited

    def _attribute(self, node: fx.Node) -> Tensor:
        path = str(node.target)
        tensor = attribute(self.root, path)
        if not isinstance(tensor, Tensor):
            raise _Unsuited
        name = self._name(node)
        if not tensor.is_meta:
            self.constants[name] = tensor
        elif path.startswith(self.above):
            self.tensors[name] = path.removeprefix(self.above)
        else:
            raise _Unsuited
        return tensor.to("meta")

    def _call(self, node: fx.Node) -> object:
        """Run an operation without data. Sizes of parameters stay what they are: no call."""
        target: Any = node.target
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        by_method = node.op == "call_method"
        value = run_method(target, args, kwargs) if by_method else target(*args, **kwargs)
        if _is_number(value):
            if (args[1] if target is getattr else target) in Questions.OF_EACH:
                raise _Unsuited  # not known without data
            return value
        operands = {
            self.names[operand]: value_of(self.values[operand])
            for operand in node.all_input_nodes
            if operand in self.names
        }
        args, kwargs = mapped((node.args, node.kwargs), self._referred)
        call = Call(target, args, kwargs, operands, value_of(value))
        if draws(call) or _is_in_place(call):
            raise _Unsuited
        self.calls[self._name(node)] = call
        return value

    def _referred(self, item: object) -> object:
        if not isinstance(item, fx.Node):
            return item
        return Ref(self.names[item]) if item in self.names else self.values[item]

    def _name(self, node: fx.Node) -> str:
        """Name the value of a node, alike in graphs that compute the same."""
        return self.names.setdefault(node, f"v{len(self.names)}")


def _is_number(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_number, value))
    return value is None or isinstance(value, int | float | str)


def _is_in_place(call: Call) -> bool:
    title = call.title
    if getattr(operator, title, None) is call.target:
        return title[0] == "i" and hasattr(operator, title[1:])  # iadd and its kin
    written = call.kwargs.get("out") is not None or bool(call.kwargs.get("inplace"))
    return written or title.endswith("_") or call.target is assigned
