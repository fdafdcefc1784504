"""Calls of functions with weights computed from a module's own parameters, read as layers.

A module that standardizes its weight and calls ``F.conv2d`` with the result does what a layer does
that computes its weight and convolves. In the skeleton it becomes one, where the weight is
computed filter by filter: see ``ops/layers/computed.py``.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, fx, nn

from hetmp.ops import COMPUTED, Computed, Recipe, is_cut
from hetmp.slicing.graph.confirmation import confirm
from hetmp.slicing.graph.layer_calls import layer_call, put_layer
from hetmp.slicing.graph.meta_run import attribute
from hetmp.slicing.graph.recipes import ancestors, read_recipe


@dataclass(frozen=True)
class _Call:
    """A call that amounts to a layer with a computed weight.

    Attributes:
        node: the call.
        computing: what computes the weight and the bias.
        path: the place of the layer.
        layer: the layer.
    """

    node: fx.Node
    computing: Sequence[fx.Node]
    path: str
    layer: Computed


def as_computed_layers(skeleton: nn.Module, graphs: Sequence[fx.Graph]) -> None:
    """Put layers that compute their weight into *skeleton*, and their calls into *graphs*."""
    called = {str(n.target) for graph in graphs for n in graph.nodes if n.op == "call_module"}
    by_path: dict[str, list[_Call]] = {}
    for graph in dict.fromkeys(graphs):
        for node in graph.nodes:
            call = _computed_call(node, skeleton) if node.op == "call_function" else None
            if call is not None:
                by_path.setdefault(call.path, []).append(call)
    for path, calls in by_path.items():
        alike = len({call.layer.recipe.text + repr(call.layer.plain) for call in calls}) == 1
        if alike and not called & _holders(calls[0]) and _is_alone(calls, graphs):
            above, _, last = path.rpartition(".")
            skeleton.get_submodule(above)._modules[last] = calls[0].layer
            for call in calls:
                _replace(call)


def computed_layer(owner: nn.Module, plain: nn.Module, recipe: Recipe) -> Computed | None:
    """Return a layer with the tensors of *owner* and the modules inside it, None if impossible.

    Args:
        owner: the module in the place of the layer.
        plain: the layer that mixes, on the meta device.
        recipe: what computes its weight and bias.
    """
    kind = next((kind for of, kind in COMPUTED.items() if type(plain) is of), None)
    layer: Computed | None = None if kind is None else kind(owner, plain, recipe)
    for name in recipe.tensors.values():
        if layer is None or attrgetter(name)(layer) is not attribute(owner, name):
            return None  # a parameter has the name of a setting
    return layer


def weights_of(plain: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give *plain* parameters without data, like *values*, in the place of its own."""
    for name, value in values.items():
        plain._parameters[name] = nn.Parameter(value.detach().to("meta"))


def _computed_call(node: fx.Node, skeleton: nn.Module) -> _Call | None:
    call = layer_call(node)
    if call is None:
        return None
    operand = call.operand
    results = {name: item for name, item in call.tensors.items() if isinstance(item, fx.Node)}
    if not isinstance(operand, fx.Node) or "weight" not in results:
        return None
    if not set(node.all_input_nodes) <= {operand, *results.values()}:
        return None  # a setting that is not known before it runs
    computing = ancestors(results.values())
    if any(n.op != "get_attr" and n.meta["scope"] != node.meta["scope"] for n in computing):
        return None  # a layer runs in one scope
    path = _home(computing, skeleton)
    read = read_recipe(skeleton, path, results) if path else None
    if read is None:
        return None
    recipe, values = read
    plain = call.make(values)
    if plain is None:
        return None
    weights_of(plain, values)
    layer = computed_layer(skeleton.get_submodule(path), plain, recipe)
    if layer is None or not is_cut(layer):
        return None
    return _Call(node, computing, path, layer)


def _home(computing: Sequence[fx.Node], skeleton: nn.Module) -> str:
    """Return the path of the module around all parameters and buffers that are read."""
    above = [
        str(node.target).split(".")[:-1]
        for node in computing
        if node.op == "get_attr" and _is_own(attribute(skeleton, str(node.target)))
    ]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*above, strict=False))
    return ".".join(parts[0] for parts in shared)


def _is_own(value: object) -> bool:
    """Return whether a value is a parameter or a buffer: these have no data."""
    return isinstance(value, Tensor) and value.is_meta


def _holders(call: _Call) -> set[str]:
    """Return the paths of the modules that hold the layer's tensors, and of those around them."""
    holders = {call.path}
    for name in call.layer.recipe.tensors.values():
        parts = name.split(".")[:-1]
        holders |= {".".join([call.path, *parts[:end]]) for end in range(1, len(parts) + 1)}
    return holders


def _is_alone(calls: Sequence[_Call], graphs: Sequence[fx.Graph]) -> bool:
    """Return whether only *calls* read the layer's tensors, and what is computed of them."""
    inside = {node for call in calls for node in (call.node, *call.computing)}
    places = {f"{calls[0].path}.{name}" for name in calls[0].layer.recipe.tensors.values()}
    computing = {node for call in calls for node in call.computing}
    reading = {
        node
        for graph in graphs
        for node in graph.nodes
        if node.op == "get_attr" and str(node.target) in places
    }
    users = {user for node in computing | reading for user in node.users}
    return not any(map(_is_read, users - inside))


def _is_read(node: fx.Node) -> bool:
    """Return whether a node does more than ask for sizes that nothing needs."""
    if node.target in (getattr, operator.getitem, "size"):
        return any(map(_is_read, node.users))
    return node.target is not confirm


def _replace(call: _Call) -> None:
    """Put a call of the layer in the place of a call of a function."""
    graph = call.node.graph
    put_layer(call.node, call.path)
    ahead, unused = list(call.computing), set()
    while ahead:
        computing = ahead.pop()
        unused.add(computing)
        ahead += [user for user in computing.users if not _is_read(user)]
    for computing in reversed(graph.nodes):
        # Sizes of parameters stay what they are: nothing needs to be confirmed.
        if computing in unused and not computing.users:
            graph.erase_node(computing)
