"""One rank's share of a sliced model without the other ranks, to measure its work."""

import math

import torch
from torch import Tensor

from hetmp.cluster import RehearsalGroup
from hetmp.ops import initial_value
from hetmp.slicing.build import add_layers
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.plan import Plan
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.table import make_table
from hetmp.slicing.tuning import Tuning


def rehearsal_model(
    graph: ModelGraph, plan: Plan, group: RehearsalGroup, device: torch.device, tuning: Tuning
) -> SlicedModel:
    """Make the share of *group*'s rank under *plan*, with made-up values. Not collective.

    Args:
        graph: the model.
        plan: of all ranks of the group, which need not exist.
        group: one rank of a group whose exchanges reach no one.
        device: where the parameters lie.
        tuning: how the work is done.

    Returns:
        The model, in training mode.

    Raises:
        HetmpError: the plan is for another model.
    """
    schedule = schedule_model(graph, plan)
    table = make_table(graph, schedule)
    model = SlicedModel(graph, plan, schedule, table, group, tuning)
    add_layers(model, device)
    with torch.no_grad():
        for parameter in model.parameters():
            _spread(parameter)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                buffer.fill_(initial_value(module, name) or 0.0)
    return model.train()


def _spread(parameter: Tensor) -> None:
    """Fill a parameter so that activations keep their size; others can slow arithmetic down."""
    fan_in = max(1, math.prod(parameter.shape[1:]))
    parameter.uniform_(-1, 1).mul_(math.sqrt(6 / fan_in))
