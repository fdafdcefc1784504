"""Inputs of a module that is verified: a few images of the example, or drawn ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hetmp.slicing.graph import ModelGraph

IMAGES = 2
"""How many images a batch has where the module takes any number: batch norm wants more than one."""


def first_values(
    graph: ModelGraph, values: Mapping[str, Tensor], images: int | None = IMAGES
) -> dict[str, Tensor]:
    """Return the example's own values (*values*, by name), and drawn ones for what has none.

    Args:
        images: how many, where the module takes any number; None for all of the example's.
    """
    drawn = drawn_values(graph, images)
    own = {
        name: _cut(graph, name, x, images).to(graph.example.device)
        for name, x in values.items()
        if not x.is_meta
    }
    return {**drawn, **own}


def drawn_values(graph: ModelGraph, images: int | None = IMAGES) -> dict[str, Tensor]:
    """Return random values for every input, on the device of the example, by name."""
    example = graph.example
    return {
        name: _drawn(_cut(graph, name, tensor, images), example.device)
        for name, tensor in example.tensors.items()
    }


def copied(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of a batch in memory of their own, which a module may change."""
    return {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in batch.items()}


def _drawn(like: Tensor, device: torch.device) -> Tensor:
    """Draw normal numbers, or zeros and ones where *like* is not of floating point numbers."""
    if like.is_floating_point() or like.is_complex():
        x = torch.randn(like.shape, dtype=like.dtype)
    else:
        x = torch.randint(2, like.shape).to(like.dtype)
    return x.to(device).requires_grad_(like.requires_grad)


def _cut(graph: ModelGraph, name: str, tensor: Tensor, images: int | None) -> Tensor:
    """Return a few images of *tensor* where the module takes any number of them."""
    shapes = [
        trace.values[value].shape
        for trace in graph.traces
        for value, entry in trace.entries.items()
        if entry == name
    ]
    any_number = all(shape and shape[0] is None for shape in shapes)
    if images is None or not any_number or len(tensor) <= images:
        return tensor
    return tensor.detach()[:images].requires_grad_(tensor.requires_grad)
