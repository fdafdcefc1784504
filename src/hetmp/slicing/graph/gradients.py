"""What a module asks of gradients, or does with them, while it is traced."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from hetmp.slicing.graph.scope import Scope

BACKWARD = (
    "backward",
    "register_hook",
    "register_post_accumulate_grad_hook",
    "retain_grad",
    torch.autograd.grad,
    torch.autograd.backward,
)
"""Methods and functions that work on the gradients of a pass."""


def requires_grad(
    node: fx.Node, attribute: Callable[[str], Any], examples: Mapping[str, Tensor]
) -> bool:
    """Return whether the gradient of *node*'s value is computed while the module is traced.

    Args:
        attribute: returns the parameter, buffer or module at a path.
        examples: the inputs, by name.
    """
    wanted: dict[fx.Node, bool] = {}
    for other in node.graph.nodes:
        scope: Scope = other.meta["scope"]
        if other.op == "placeholder":
            wanted[other] = examples[str(other.target)].requires_grad
        elif other.op == "get_attr":
            value = attribute(str(other.target))
            wanted[other] = bool(getattr(value, "requires_grad", False))
        else:
            own = other.op == "call_module" and any(
                p.requires_grad for p in attribute(str(other.target)).parameters()
            )
            wanted[other] = other.target != "detach" and (
                own or any(wanted[operand] for operand in other.all_input_nodes)
            )
        if scope.grad is False or (scope.grad is None and not torch.is_grad_enabled()):
            wanted[other] = wanted[other] and other.op in ("placeholder", "get_attr")
    return wanted[node]
