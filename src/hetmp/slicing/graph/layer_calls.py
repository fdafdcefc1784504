"""Calls of functions that amount to a layer, such as ``F.conv2d(x, weight, bias, stride)``."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from hetmp.ops import LayerForm, layer_form
from hetmp.slicing.graph.module_calls import REPLACED


@dataclass(frozen=True)
class LayerCall:
    """A call of a function whose arguments make a layer.

    Attributes:
        form: how they do.
        operand: what the layer takes.
        tensors: what the layer owns (``weight``, ``bias``), None where the call has none.
        settings: the other arguments.
    """

    form: LayerForm
    operand: object
    tensors: Mapping[str, object]
    settings: Mapping[str, object]

    def make(self, values: Mapping[str, Tensor | None]) -> nn.Module | None:
        """Make the layer, on the meta device; None where it does not fit its settings.

        *values* are like its tensors, by name.
        """
        own = {**dict.fromkeys(self.form.tensors), **values}
        try:
            with torch.device("meta"):
                layer = self.form.make(**own, **self.settings)
        except (TypeError, ValueError, RuntimeError):
            return None
        fits = all(x is None or x.shape == getattr(layer, name).shape for name, x in own.items())
        return layer if fits else None


def layer_call(node: fx.Node) -> LayerCall | None:
    """Return how a *node*'s function and arguments make a layer; None if they do not."""
    form = layer_form(node.target)
    if form is None or len(node.args) > len(form.arguments):
        return None
    arguments: dict[str, object] = dict(zip(form.arguments, node.args, strict=False))
    arguments |= node.kwargs
    operand = arguments.pop("input", None)
    tensors = {name: arguments.pop(name, None) for name in form.tensors}
    return LayerCall(form, operand, tensors, arguments)


def put_layer(node: fx.Node, path: str) -> None:
    """Put a call of the layer at *path* in the place of *node*, a call that amounts to it."""
    call = layer_call(node)
    assert call is not None
    operand = call.operand  # now: it may have been replaced itself
    assert isinstance(operand, fx.Node)
    with node.graph.inserting_before(node):
        layered = node.graph.call_module(path, (operand,))
    layered.meta, layered.stack_trace = dict(node.meta), node.stack_trace
    node.replace_all_uses_with(layered)
    node.meta[REPLACED] = layered
    node.graph.erase_node(node)
