"""Layers whose weight torch computes before each run: parametrizations, and weight norm of old.

They become layers that compute their weight themselves: see ``ops/layers/computed.py``.
"""

import copy
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument, Target
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.weight_norm import WeightNorm

from hetmp.ops import COMPUTED, Computed
from hetmp.slicing.graph.computed import computed_layer, weights_of
from hetmp.slicing.graph.recipes import read_recipe
from hetmp.slicing.graph.subclasses import base_of


def as_computing(skeleton: nn.Module) -> None:
    """Replace each layer of *skeleton* whose weight is computed by operations on its parameters."""
    layers = dict(skeleton.named_modules(remove_duplicate=False))
    made: dict[nn.Module, Computed | None] = {}
    for path, layer in layers.items():
        if not path or not (is_parametrized(layer) or norms_of_old(layer)):
            continue
        if layer not in made:
            made[layer] = _computing(layer)
        computing, (above, _, last) = made[layer], path.rpartition(".")
        if computing is not None:
            skeleton.get_submodule(above)._modules[last] = computing


def norms_of_old(layer: nn.Module) -> list[WeightNorm]:
    """Return the hooks of ``torch.nn.utils.weight_norm`` on a layer."""
    return [hook for hook in layer._forward_pre_hooks.values() if type(hook) is WeightNorm]


def _computing(layer: nn.Module) -> Computed | None:
    """Return a layer that computes the weight of *layer* itself; None if it does more."""
    kind: object = base_of(type_before_parametrizations(layer))
    if kind not in COMPUTED:
        return None
    with torch.random.fork_rng(devices=[]):  # once for both: random numbers tell them apart
        training, evaluation = (_read(copy.deepcopy(layer).train(mode)) for mode in (True, False))
    if training is None or evaluation is None:
        return None
    recipe, values = training
    if recipe.text != evaluation[0].text:
        return None  # it also draws random numbers, or remembers
    plain: Any = kind.__new__(kind)
    # Without what weight norm of old computed last, which would hide the parameter.
    plain.__dict__ = {name: item for name, item in vars(layer).items() if name != "weight"}
    plain._parameters = dict.fromkeys(("weight", "bias"))
    plain._buffers, plain._modules, plain._forward_pre_hooks = {}, {}, OrderedDict()
    weights_of(plain, values)
    return computed_layer(layer, plain, recipe)


def _read(layer: nn.Module) -> Any:
    """Read how weight and bias are computed; None if that cannot be traced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = _Weights(layer)
            graph = _Tracer().trace(root)
            results = next(node.args[0] for node in graph.nodes if node.op == "output")
            computed = {name: node for name, node in results.items() if node is not None}
            return read_recipe(root, "layer", computed)
    except Exception:
        return None  # whatever the parametrization does: it stays one operation


class _Weights(nn.Module):
    """Gives the weight and the bias with which a layer would run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> dict[str, Any]:
        weights = {"weight": None, "bias": None}
        hooks = {hook.name: hook for hook in norms_of_old(self.layer)}
        for name in weights:
            hook = hooks.get(name)
            weights[name] = hook.compute_weight(self.layer) if hook else getattr(self.layer, name)
        return weights


class _Tracer(fx.Tracer):
    """Looks inside every module: they are parametrizations."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False

    def create_node(
        self,
        kind: str,
        target: Target,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        name: str | None = None,
        type_expr: object = None,
    ) -> fx.Node:
        if not torch.is_grad_enabled():
            raise RuntimeError("operations without gradients would be recorded as if they had them")
        return super().create_node(kind, target, args, kwargs, name, type_expr)
