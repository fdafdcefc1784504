"""Modules that are kept as one operation: ``leaf``."""

from typing import TypeVar

from torch import nn

_LEAF = "_hetmp_leaf"

_Module = TypeVar("_Module", nn.Module, type[nn.Module])


def leaf(module: _Module) -> _Module:
    """Mark a module, or a class of modules, as one operation: torch.fx does not look inside.

    Every rank computes it whole, from all channels, so the result stays the same. For what
    torch.fx cannot trace, such as control flow on an activation's values.

    Returns:
        *module* itself, so that it can be used as a decorator of a class.
    """
    setattr(module, _LEAF, True)
    return module


def is_leaf(module: nn.Module) -> bool:
    """Return whether *module* is marked to be kept as one operation."""
    return getattr(module, _LEAF, False)
