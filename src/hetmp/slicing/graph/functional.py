"""Calls of functions with a module's own parameters, read as the layers that they amount to.

A module that calls ``F.conv2d(pad(x), self.weight, self.bias, self.stride)`` does what an
``nn.Conv2d`` with these parameters does. In the skeleton, which is hetmp's own copy, it becomes
one, and the call becomes a call of that layer, so that it is sliced as any other.
"""

from collections.abc import Mapping, Sequence

from torch import fx, nn

from hetmp.slicing.graph.computed import as_computed_layers
from hetmp.slicing.graph.layer_calls import layer_call, put_layer
from hetmp.slicing.graph.meta_run import attribute


def as_layers(skeleton: nn.Module, graphs: Sequence[fx.Graph]) -> None:
    """Put layers into *skeleton* and their calls into *graphs*, where a function amounts to one."""
    made: dict[str, nn.Module] = {}
    settings: dict[str, str] = {}
    called = {n.target for graph in graphs for n in graph.nodes if n.op == "call_module"}
    for graph in dict.fromkeys(graphs):
        for node in list(graph.nodes):
            own_layer = _own_layer(node, skeleton) if node.op == "call_function" else None
            if own_layer is None or own_layer[0] in called:
                continue
            path, layer = own_layer
            if settings.setdefault(path, repr(layer)) != repr(layer):
                continue  # the same parameters in another way
            if path not in made:
                made[path] = _put(skeleton, path, layer)
            put_layer(node, path)
        owned = _owned(made)
        for node in reversed(graph.nodes):
            if node.op == "get_attr" and not node.users and str(node.target) in owned:
                graph.erase_node(node)
    as_computed_layers(skeleton, graphs)


def _owned(made: Mapping[str, nn.Module]) -> set[str]:
    """Return the places of the parameters that now belong to layers."""
    return {f"{path}.{name}" for path, layer in made.items() for name in layer._parameters}


def _own_layer(node: fx.Node, skeleton: nn.Module) -> tuple[str, nn.Module] | None:
    """Return (path, layer) of a call that is a layer on its module's own parameters."""
    call = layer_call(node)
    if call is None:
        return None
    operand, tensors = call.operand, call.tensors
    path = _home(tensors)
    if not path or not set(node.all_input_nodes) <= {operand, *tensors.values()}:
        return None  # the module itself, or a setting that is not known before it runs
    owner = attribute(skeleton, path)
    own = {name: getattr(owner, name) for name, node in tensors.items() if node is not None}
    others = {name for name, item in (*owner._parameters.items(), *owner._buffers.items())
              if item is not None and name not in own}  # fmt: skip
    if others or not isinstance(operand, fx.Node):
        return None
    if not all(isinstance(value, nn.Parameter) for value in own.values()):
        return None
    layer = call.make(own)
    if layer is None:
        return None
    layer._parameters.update({name: own.get(name) for name in tensors})
    return path, layer


def _home(tensors: Mapping[str, object]) -> str | None:
    """Return the path of the module that owns all the tensors, under a layer's names for them."""
    homes = set()
    for name, node in tensors.items():
        if node is None and name != "weight":
            continue
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        above, _, last = str(node.target).rpartition(".")
        if last != name:
            return None
        homes.add(above)
    return homes.pop() if len(homes) == 1 else None


def _put(skeleton: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Replace the module at *path*; the modules below it stay there."""
    owner = skeleton.get_submodule(path)
    layer.training = owner.training
    for name, child in owner.named_children():
        layer.add_module(name, child)
    above, _, last = path.rpartition(".")
    skeleton.get_submodule(above)._modules[last] = layer
    return layer
