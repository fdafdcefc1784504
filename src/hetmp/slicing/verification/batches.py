"""Inputs of a module that is verified: a few images of the example, or drawn ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hetmp.slicing.graph import ModelGraph

IMAGES = 2
"""How many images a batch has where the module takes any number: batch norm wants more than one."""


def first_values(graph: ModelGraph, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the example's own values (*values*, by name), and drawn ones for what has none."""
    drawn = drawn_values(graph)
    device = graph.example.device
    own = {name: _cut(graph, name, x).to(device) for name, x in values.items() if not x.is_meta}
    return {**drawn, **own}


def drawn_values(graph: ModelGraph) -> dict[str, Tensor]:
    """Return random values for every input, on the device of the example, by name."""
    example = graph.example
    return {
        name: _drawn(_cut(graph, name, tensor), example.device)
        for name, tensor in example.tensors.items()
    }


def _drawn(like: Tensor, device: torch.device) -> Tensor:
    """Draw normal numbers, or zeros and ones where *like* is not of floating point numbers."""
    if like.is_floating_point() or like.is_complex():
        x = torch.randn(like.shape, dtype=like.dtype)
    else:
        x = torch.randint(2, like.shape).to(like.dtype)
    return x.to(device).requires_grad_(like.requires_grad)


def _cut(graph: ModelGraph, name: str, tensor: Tensor) -> Tensor:
    """Return a few images of *tensor* where the module takes any number of them."""
    shapes = [
        trace.values[value].shape
        for trace in graph.traces
        for value, entry in trace.entries.items()
        if entry == name
    ]
    any_number = all(shape and shape[0] is None for shape in shapes)
    if not any_number or len(tensor) <= IMAGES:
        return tensor
    return tensor.detach()[:IMAGES].requires_grad_(tensor.requires_grad)
