"""Inputs of a module that is verified: a few images of the example, or drawn ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hetmp.slicing.graph import ModelGraph

IMAGES = 2
"""How many images a batch has where the module takes any number: batch norm wants more than one."""

SIDE = 32
"""The side of images in a first try, where the example has larger ones."""


def sides(graph: ModelGraph) -> tuple[int | None, ...]:
    """Return the sides of images to try, in order; None for those of the example."""
    shapes = (tensor.shape[2:] for tensor in graph.example.tensors.values() if tensor.dim() > 3)
    return (SIDE, None) if any(max(shape) > SIDE for shape in shapes) else (None,)


def first_values(
    graph: ModelGraph,
    values: Mapping[str, Tensor],
    side: int | None,
    images: int | None = IMAGES,
) -> dict[str, Tensor]:
    """Return the example's own values (*values*, by name), and drawn ones for what has none.

    Args:
        graph: what was read.
        values: by the names of the inputs.
        side: the longest that images may be, None for any.
        images: how many, where the module takes any number; None for all of the example's.
    """
    own = {name: _cut(graph, name, x, side, images) for name, x in values.items() if not x.is_meta}
    return {**drawn_values(graph, side, images), **own}


def drawn_values(
    graph: ModelGraph, side: int | None, images: int | None = IMAGES
) -> dict[str, Tensor]:
    """Return random values for every input, on the CPU, by name; see ``first_values``."""
    return {
        name: _drawn(_cut(graph, name, tensor, side, images))
        for name, tensor in graph.example.tensors.items()
    }


def copied(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a batch in memory of their own, which a module may change."""
    return {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in batch.items()}


def _drawn(like: Tensor) -> Tensor:
    """Draw normal numbers, or zeros and ones where *like* is not of floating point numbers."""
    if like.is_floating_point() or like.is_complex():
        x = torch.randn(like.shape, dtype=like.dtype)
    else:
        x = torch.randint(2, like.shape).to(like.dtype)
    return x.requires_grad_(like.requires_grad)


def _cut(
    graph: ModelGraph, name: str, tensor: Tensor, side: int | None, images: int | None
) -> Tensor:
    """Return a few images of *tensor* where the module takes any number, no larger than *side*."""
    grad = tensor.requires_grad
    tensor = tensor.detach()
    if side is not None and tensor.dim() > 3:
        for axis in range(2, tensor.dim()):
            tensor = tensor.narrow(axis, 0, min(side, tensor.shape[axis]))
    shapes = [
        trace.values[value].shape
        for trace in graph.traces
        for value, entry in trace.entries.items()
        if entry == name
    ]
    any_number = all(shape and shape[0] is None for shape in shapes)
    few = tensor[:images] if any_number and images is not None else tensor
    return few.requires_grad_(grad)
