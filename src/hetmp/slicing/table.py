"""The table of parameters and buffers and how each is sliced: pure, no MPI."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hetmp.core.state import FULL, State
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.schedule import CallStep, Schedule


@dataclass(frozen=True)
class SlicedTensor:
    """A parameter or buffer of the unsliced module.

    Attributes:
        name: as in the user's ``state_dict``.
        shape, dtype: of the whole tensor.
        state: ``FULL`` (every rank holds it alike) or ``Sliced`` along one of its axes.
        parameter: whether it is a parameter, not a buffer.
        persistent: whether it is in the ``state_dict``.
        alias_of: the first name of the tensor, where this is not it.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    state: State
    parameter: bool
    persistent: bool
    alias_of: str | None


Table = dict[str, SlicedTensor]


def make_table(graph: ModelGraph, schedule: Schedule) -> Table:
    """Make the table, an entry per parameter and buffer, in the order of the ``state_dict``."""
    cuts: dict[str, State] = {}
    for step in schedule.steps:
        if isinstance(step, CallStep):
            for name, cut in step.cuts.items():
                cuts.setdefault(f"{step.node.path}.{name}", cut)
    skeleton = graph.skeleton
    parameters = dict(skeleton.named_parameters(remove_duplicate=False))
    tensors = tensors_of(skeleton)
    saved = skeleton.state_dict(keep_vars=True)
    order = [*(name for name in saved if name in tensors), *(n for n in tensors if n not in saved)]
    return {
        name: SlicedTensor(
            name,
            tensors[name].shape,
            tensors[name].dtype,
            cuts.get(graph.aliases.get(name, name), FULL),
            name in parameters,
            name in saved,
            graph.aliases.get(name),
        )
        for name in order
    }


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of *module* by all their names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
