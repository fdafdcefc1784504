"""What differs between two runs of a module: outputs, buffers, gradients, attributes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_ALLOWED = {torch.float64: 1e-9, torch.complex128: 1e-9}
"""How far two tensors may be apart, relative to their norm: the same work in the same order."""
_ALLOWED_OTHERWISE = 1e-4

_PLAIN = (bool, int, float, str, type(None))


def leaves(structure: Any, name: str = "the output") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of everything in nested tuples, lists, mappings and dataclasses."""
    if isinstance(structure, tuple | list):
        for number, item in enumerate(structure):
            yield from leaves(item, f"{name}[{number}]")
    elif isinstance(structure, Mapping):
        for key, item in structure.items():
            yield from leaves(item, f"{name}[{key!r}]")
    elif dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        for field in dataclasses.fields(structure):
            yield from leaves(getattr(structure, field.name), f"{name}.{field.name}")
    else:
        yield name, structure


def distance(a: Any, b: Any) -> float:
    """Return how far *a* is from *b*, relative to the norm of *b*: infinite for unlike kinds."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        alike = type(a) is type(b) and (not isinstance(b, _PLAIN) or a == b)
        return 0.0 if alike else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype or a.requires_grad != b.requires_grad:
        return float("inf")
    if torch.equal(a, b):
        return 0.0
    wide = torch.complex128 if b.is_complex() else torch.float64
    x, y = a.detach().to("cpu", wide), b.detach().to("cpu", wide)
    if not torch.equal(x.isfinite(), y.isfinite()):
        return float("inf")
    x, y = (torch.where(z.isfinite(), z, torch.zeros_like(z)) for z in (x, y))
    return float((x - y).norm() / y.norm().clamp_min(torch.finfo(torch.float64).tiny))


def allowed(value: Any) -> float:
    """Return the distance within which results are taken to be equal."""
    if isinstance(value, Tensor):
        return _ALLOWED.get(value.dtype, _ALLOWED_OTHERWISE)
    return 0.0


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return the plain attributes of a module and its parts, by name."""
    hidden = set(vars(nn.Module()))
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in hidden
    }


def changed_attributes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the attributes that are set anew, in order."""
    return [
        name
        for name, value in after.items()
        if name not in before
        or (before[name] is not value if not isinstance(value, _PLAIN) else before[name] != value)
    ]
