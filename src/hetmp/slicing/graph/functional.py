"""Calls of functions with a module's own parameters, read as the layers that they amount to.

A module that calls ``F.conv2d(pad(x), self.weight, self.bias, self.stride)`` does what an
``nn.Conv2d`` with these parameters does. In the skeleton, which is hetmp's own copy, it becomes
one, and the call becomes a call of that layer, so that it is sliced as any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hetmp.slicing.graph.meta_run import attribute


@dataclass(frozen=True)
class _Form:
    """How a function's arguments make a layer.

    Attributes:
        arguments: of the function, in order.
        tensors: those of them that the layer owns, under these names in the module.
        make: the layer for the weight and the other arguments by name.
    """

    arguments: tuple[str, ...]
    tensors: tuple[str, ...]
    make: Callable[..., nn.Module]


def _convolution(kind: type[nn.Module], transposed: bool) -> _Form:
    settings = ("stride", "padding", "output_padding", "groups", "dilation")
    plain = ("stride", "padding", "dilation", "groups")

    def make(weight: Tensor, bias: Tensor | None, groups: int = 1, **how: Any) -> nn.Module:
        first, second = weight.shape[:2]
        channels = (first, second * groups) if transposed else (second * groups, first)
        return kind(*channels, tuple(weight.shape[2:]), groups=groups, bias=bias is not None, **how)

    arguments = ("input", "weight", "bias", *(settings if transposed else plain))
    return _Form(arguments, ("weight", "bias"), make)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)


def _layer_norm(
    weight: Tensor, bias: Tensor | None, normalized_shape: Any, eps: float = 1e-5
) -> nn.Module:
    return nn.LayerNorm(tuple(normalized_shape), eps=eps, bias=bias is not None)


def _group_norm(
    weight: Tensor, bias: Tensor | None, num_groups: int, eps: float = 1e-5
) -> nn.Module:
    return nn.GroupNorm(num_groups, weight.shape[0], eps=eps)


def _prelu(weight: Tensor) -> nn.Module:
    return nn.PReLU(weight.numel())


FORMS: Mapping[Any, _Form] = {
    torch.conv1d: _convolution(nn.Conv1d, transposed=False),
    torch.conv2d: _convolution(nn.Conv2d, transposed=False),
    torch.conv3d: _convolution(nn.Conv3d, transposed=False),
    torch.conv_transpose1d: _convolution(nn.ConvTranspose1d, transposed=True),
    torch.conv_transpose2d: _convolution(nn.ConvTranspose2d, transposed=True),
    torch.conv_transpose3d: _convolution(nn.ConvTranspose3d, transposed=True),
    F.linear: _Form(("input", "weight", "bias"), ("weight", "bias"), _linear),
    F.layer_norm: _Form(
        ("input", "normalized_shape", "weight", "bias", "eps"), ("weight", "bias"), _layer_norm
    ),
    F.group_norm: _Form(
        ("input", "num_groups", "weight", "bias", "eps"), ("weight", "bias"), _group_norm
    ),
    F.prelu: _Form(("input", "weight"), ("weight",), _prelu),
}


def as_layers(skeleton: nn.Module, graphs: Sequence[fx.Graph]) -> None:
    """Put layers into *skeleton* and their calls into *graphs*, where a function amounts to one."""
    made: dict[str, nn.Module] = {}
    settings: dict[str, str] = {}
    called = {n.target for graph in graphs for n in graph.nodes if n.op == "call_module"}
    for graph in dict.fromkeys(graphs):
        for node in list(graph.nodes):
            found = _own_layer(node, skeleton) if node.op == "call_function" else None
            if found is None or found[0] in called:
                continue
            path, layer, given = found
            if settings.setdefault(path, repr(layer)) != repr(layer):
                continue  # the same parameters in another way
            if path not in made:
                made[path] = _put(skeleton, path, layer)
            with graph.inserting_before(node):
                call = graph.call_module(path, (given,))
            call.meta, call.stack_trace = dict(node.meta), node.stack_trace
            node.replace_all_uses_with(call)
            graph.erase_node(node)
        owned = _owned(made)
        for node in reversed(graph.nodes):
            if node.op == "get_attr" and not node.users and str(node.target) in owned:
                graph.erase_node(node)


def _owned(made: Mapping[str, nn.Module]) -> set[str]:
    """The places of the parameters that belong to layers now."""
    return {f"{path}.{name}" for path, layer in made.items() for name in layer._parameters}


def _own_layer(node: fx.Node, skeleton: nn.Module) -> tuple[str, nn.Module, fx.Node] | None:
    """(path, layer, input) of a call that amounts to a layer on its module's own parameters."""
    form = FORMS.get(node.target)
    if form is None or len(node.args) > len(form.arguments):
        return None
    arguments: dict[str, Any] = dict(zip(form.arguments, node.args, strict=False))
    arguments |= node.kwargs
    given = arguments.pop("input", None)
    tensors = {name: arguments.pop(name, None) for name in form.tensors}
    path = _home(tensors)
    if not path or not set(node.all_input_nodes) <= {given, *tensors.values()}:
        return None  # the module itself, or a setting that is not known before it runs
    owner = attribute(skeleton, path)
    own = {name: getattr(owner, name) for name, node in tensors.items() if node is not None}
    others = {name for name, item in (*owner._parameters.items(), *owner._buffers.items())
              if item is not None and name not in own}  # fmt: skip
    if others or not isinstance(given, fx.Node):
        return None
    values = {name: own.get(name) for name in form.tensors}
    try:
        with torch.device("meta"):
            layer = form.make(**values, **arguments)
    except (TypeError, ValueError, RuntimeError):
        return None
    if any(value is not None and not isinstance(value, nn.Parameter) for value in values.values()):
        return None
    if any(v is not None and v.shape != getattr(layer, n).shape for n, v in values.items()):
        return None
    layer._parameters.update(values)
    return path, layer, given


def _home(tensors: Mapping[str, Any]) -> str | None:
    """The module that owns all the tensors, under the names that a layer has for them."""
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
    """Replace the module at *path*; what lies below it stays there."""
    owner = skeleton.get_submodule(path)
    layer.training = owner.training
    for name, child in owner.named_children():
        layer.add_module(name, child)
    above, _, last = path.rpartition(".")
    skeleton.get_submodule(above)._modules[last] = layer
    return layer
