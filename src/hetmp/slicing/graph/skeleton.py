"""Copies of a module without data, which are traced: ``skeleton_of``."""

import copy
from collections.abc import Iterator

from torch import Tensor, fx, nn

from hetmp.core.errors import HetmpError
from hetmp.ops import mapped
from hetmp.slicing.graph.lines import at_line
from hetmp.slicing.graph.parametrized import norms_of_old
from hetmp.slicing.graph.users_hooks import without_hooks


def skeleton_of(module: nn.Module) -> nn.Module:
    """Copy *module* with its parameters and buffers on the meta device: no data is copied.

    Raises:
        HetmpError: a lazy parameter that has no shape yet.
    """
    memo = computed_tensors(module) | without_hooks(module)
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise HetmpError(f"parameter {name!r} has no shape yet: run the lazy module once first")
        meta = parameter.detach().to("meta")
        memo[id(parameter)] = nn.Parameter(meta, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    for layer in module.modules():
        for norm in norms_of_old(layer):  # what they computed is a tensor that cannot be copied
            weight = getattr(layer, norm.name)
            memo[id(weight)] = weight.detach().to("meta")
    return copy.deepcopy(module, memo)


def computed_tensors(module: nn.Module) -> dict[int, object]:
    """Return what stands for the tensors that a call left in attributes, for ``copy.deepcopy``.

    Such a tensor is part of a graph of gradients, and cannot be copied.
    """
    copies: dict[int, object] = {}

    def note(value: object) -> object:
        if isinstance(value, Tensor) and not value.is_leaf:
            copies[id(value)] = value.detach()
        return value

    for part in module.modules():
        mapped([value for name, value in vars(part).items() if not name.startswith("_")], note)
    return copies


def check_buffers(skeleton: nn.Module) -> None:
    """Refuse a module whose forward assigns a buffer of its own; the message names the line."""
    buffers: Iterator[tuple[str, object]] = skeleton.named_buffers()
    for name, buffer in buffers:
        if isinstance(buffer, fx.Proxy):
            raise HetmpError(
                f"{name!r} is assigned{at_line(buffer.node.stack_trace)}: a module that changes "
                "its own state cannot be sliced; mark it with hetmp.leaf"
            )
