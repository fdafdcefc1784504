"""A user's ``nn.Module`` as ordered nodes, read through torch.fx on a skeleton without data."""

import copy
import os
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from hetmp.errors import HetmpError
from hetmp.ops import LAYERS, Rule, Shape, rule_for

_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(__file__))
"""Folders whose lines are not the user's."""


@dataclass(frozen=True)
class Node:
    """One call of one layer.

    Attributes:
        name: unique in the graph.
        path: the layer's place in the module, as in the user's ``state_dict``.
        layer: the layer itself, on the meta device.
        source: the name of the value it takes.
        taken, given: shapes of its input and output; None for a size known only when it runs.
    """

    name: str
    path: str
    layer: nn.Module
    rule: Rule
    source: str
    taken: Shape
    given: Shape

    @property
    def place(self) -> str:
        """The layer as a user would point at it."""
        return place(self.path, self.layer)


@dataclass(frozen=True)
class ModelGraph:
    """The layers of a module in the order in which they run.

    Attributes:
        skeleton: a copy of the module whose parameters and buffers are on the meta device.
        entry: the name of the model's input, ``result`` that of its output value.
        dims: how many dimensions a batch of input has, None where any will do.
    """

    skeleton: nn.Module
    entry: str
    nodes: tuple[Node, ...]
    result: str
    dims: int | None

    def mixing(self) -> Iterator[Node]:
        """The layers that mix channels: the ones that a plan speaks of."""
        return (node for node in self.nodes if node.rule.mixes)

    def consumers(self, name: str) -> list[Node]:
        """The nodes that take a value."""
        return [node for node in self.nodes if node.source == name]


def place(path: str, layer: nn.Module) -> str:
    """A layer as a user would point at it: ``'features.0' (Conv2d)``."""
    return f"{path!r} ({type(layer).__name__})"


def read_graph(module: nn.Module, example_input: Tensor | None = None) -> ModelGraph:
    """Read *module*'s layers, without touching it or computing anything.

    Args:
        module: on any device, the meta device included.
        example_input: a tensor of a batch's shape and dtype (its values are not looked at).
            With it every size is known; without it, only those that the layers tell.

    Raises:
        HetmpError: torch.fx cannot trace the module, an operator has no rule or is set up in a
            way that is not sliced, or neighbouring layers disagree on their channels.
    """
    if not isinstance(module, nn.Module):
        raise HetmpError(f"only an nn.Module can be sliced, got {module!r}")
    if isinstance(module, LAYERS):
        raise HetmpError(
            f"a single {type(module).__name__} cannot be sliced: put it into an nn.Sequential"
        )
    _check_hooks(module)
    skeleton = skeleton_of(module)
    traced = _trace(skeleton)
    entry, calls, result = _chain(skeleton, traced)
    _check_layers(skeleton, calls)
    if example_input is not None:
        nodes = _with_known_shapes(skeleton, traced, entry, calls, example_input)
        dims: int | None = example_input.dim()
    else:
        dims = _input_dims(calls)
        nodes = _with_inferred_shapes(entry, calls, dims)
    for node in nodes:
        _check_channels(node)
    return ModelGraph(skeleton, entry, tuple(nodes), result, dims)


def skeleton_of(module: nn.Module) -> nn.Module:
    """A copy of *module* whose parameters and buffers are on the meta device: no data copied.

    Raises:
        HetmpError: a lazy parameter that has no shape yet.
    """
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise HetmpError(f"parameter {name!r} has no shape yet: run the lazy module once first")
        meta = parameter.detach().to("meta")
        memo[id(parameter)] = nn.Parameter(meta, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo)


class _Tracer(fx.Tracer):
    record_stack_traces = True  # so that errors can name the user's line

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A subclass of a known layer is a layer too: it is refused as one, by its name.
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


def _trace(skeleton: nn.Module) -> fx.Graph:
    """The module's graph, if it is the same in training and in evaluation."""
    modes = {path: layer.training for path, layer in skeleton.named_modules()}
    graphs = []
    try:
        for mode in (True, False):
            skeleton.train(mode)
            graphs.append(_Tracer().trace(skeleton))
    except Exception as error:
        place = _where("".join(traceback.format_tb(error.__traceback__)))
        raise HetmpError(
            f"torch.fx cannot trace {type(skeleton).__name__}{place}: {error}. What depends on an "
            "activation's values cannot be sliced"
        ) from error
    finally:
        for path, layer in skeleton.named_modules():
            layer.training = modes[path]
    training, evaluation = ([(n.op, n.target, str(n.args)) for n in g.nodes] for g in graphs)
    if training != evaluation:
        raise HetmpError(
            f"{type(skeleton).__name__} runs other layers in training than in evaluation: "
            "that is not sliced"
        )
    return graphs[0]


@dataclass(frozen=True)
class _Call:
    name: str
    path: str
    layer: nn.Module
    rule: Rule
    source: str


def _chain(skeleton: nn.Module, graph: fx.Graph) -> tuple[str, list[_Call], str]:
    entry, calls, result = "", [], ""
    for node in graph.nodes:
        if node.op == "placeholder":
            if entry:
                raise HetmpError(
                    f"{type(skeleton).__name__} takes more than one input ({entry}, "
                    f"{node.target}): only one is sliced"
                )
            entry = node.name
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise HetmpError(
                    f"{type(skeleton).__name__} returns {node.args[0]!r}: only a single tensor is "
                    "sliced"
                )
            result = node.args[0].name
        elif node.op == "call_module":
            layer = skeleton.get_submodule(str(node.target))
            rule = rule_for(layer)
            if rule is None:
                raise HetmpError(
                    f"layer {place(str(node.target), layer)} cannot be sliced: hetmp has no rule "
                    "for it"
                )
            if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
                raise HetmpError(
                    f"layer {place(str(node.target), layer)} cannot be sliced: it is called with "
                    "more than one tensor"
                )
            calls.append(_Call(node.name, str(node.target), layer, rule, node.args[0].name))
        else:
            raise HetmpError(
                f"operation {node.name!r} ({node.op} {_target_name(node.target)}) of "
                f"{type(skeleton).__name__} cannot be sliced: hetmp slices chains of layers"
                + _where(node.stack_trace or "")
            )
    if not any(call.rule.mixes for call in calls):
        raise HetmpError(
            f"{type(skeleton).__name__} has no convolution or linear layer: nothing can be sliced"
        )
    return entry, calls, result


def _target_name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _where(stack: str) -> str:
    """The innermost line of the user's in a stack trace as Python prints it."""
    frames = re.findall(r'File "(.+)", line (\d+)', stack)
    users = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    return ", at {}:{}".format(*users[-1]) if users else ""


def _check_layers(skeleton: nn.Module, calls: list[_Call]) -> None:
    seen: set[str] = set()
    for call in calls:
        refusal = call.rule.refusal(call.layer)
        if refusal is None and list(call.layer.parameters()) and call.path in seen:
            refusal = "it runs more than once, and shared parameters are not sliced"
        if refusal is not None:
            raise HetmpError(f"layer {place(call.path, call.layer)} cannot be sliced: {refusal}")
        seen.add(call.path)
    names: dict[int, str] = {}
    for name, parameter in skeleton.named_parameters(remove_duplicate=False):
        if id(parameter) in names:
            raise HetmpError(
                f"parameters {names[id(parameter)]!r} and {name!r} are one tensor: tied parameters "
                "are not sliced"
            )
        names[id(parameter)] = name


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check_hooks(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        if any(getattr(layer, hooks) for hooks in _HOOKS):
            raise HetmpError(
                f"layer {place(path, layer)} cannot be sliced: its hooks would not run on slices: "
                "remove them first"
            )


def _with_known_shapes(
    skeleton: nn.Module, graph: fx.Graph, entry: str, calls: list[_Call], example_input: Tensor
) -> list[Node]:
    example = torch.empty(example_input.shape, dtype=example_input.dtype, device="meta")
    copied = copy.deepcopy(skeleton)  # a training-mode run would change statistics
    traced = fx.GraphModule(copied, copy.deepcopy(graph))
    try:
        ShapeProp(traced).propagate(example)
    except Exception as error:
        raise HetmpError(
            f"an input of shape {tuple(example_input.shape)} does not fit the model: {error}"
        ) from error
    shapes: dict[str, Shape] = {
        node.name: tuple(node.meta["tensor_meta"].shape)
        for node in traced.graph.nodes
        if "tensor_meta" in node.meta and node.op != "output"
    }
    return [
        Node(c.name, c.path, c.layer, c.rule, c.source, shapes[c.source], shapes[c.name])
        for c in calls
    ]


def _input_dims(calls: list[_Call]) -> int | None:
    """How many dimensions the first layers want a batch to have, None where any will do."""
    for call in calls:
        if (dims := call.rule.input_dims(call.layer)) is not None:
            return dims
        if call.rule.mixes:
            return 2  # a linear layer in front takes (n, features)
        if isinstance(call.layer, nn.Flatten):
            return None
    return None


def _with_inferred_shapes(entry: str, calls: list[_Call], dims: int | None) -> list[Node]:
    """Shapes as far as the layers tell: dimensions and channels, seldom the image size."""
    # Where any number of dimensions will do, a flatten comes before all that asks for it.
    shapes: dict[str, Shape] = {entry: (None,) * (dims or 4)}
    nodes = []
    for call in calls:
        taken = shapes[call.source]
        shapes[call.name] = given = call.rule.shape(call.layer, taken)
        nodes.append(Node(call.name, call.path, call.layer, call.rule, call.source, taken, given))
    return _demanded_sizes(nodes, shapes)


def _demanded_sizes(nodes: list[Node], shapes: dict[str, Shape]) -> list[Node]:
    """Fill in sizes from behind: a linear layer tells how long the flattened axis before it is."""
    for node in reversed(nodes):
        channels = node.rule.input_channels(node.layer)
        shape = shapes[node.source]
        axis = node.rule.channel_axis(node.layer, len(shape))
        if channels is None and not node.rule.mixes and len(shapes[node.name]) == len(shape):
            channels = shapes[node.name][axis]
        if channels is not None and shape[axis] is None:
            shapes[node.source] = (*shape[:axis], channels, *shape[axis + 1 :])
    return [replace(node, taken=shapes[node.source], given=shapes[node.name]) for node in nodes]


def _check_channels(node: Node) -> None:
    wanted = node.rule.input_channels(node.layer)
    axis = node.rule.channel_axis(node.layer, len(node.taken))
    dims = node.rule.input_dims(node.layer)
    if dims is not None and len(node.taken) != dims:
        raise HetmpError(
            f"layer {node.place} takes batches of {dims} dimensions, got {len(node.taken)}: give "
            "the batch axis, also for one sample"
        )
    if wanted is not None and node.taken[axis] not in (None, wanted):
        raise HetmpError(
            f"layer {node.place} takes {wanted} channels, but the layer before it gives "
            f"{node.taken[axis]}"
        )
