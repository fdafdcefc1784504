"""The norm of all gradients, which no rank sees whole, and clipping by it."""

import math

import numpy as np
import torch
from torch import Tensor

from hetmp.cluster import AgreedError
from hetmp.core.state import FULL
from hetmp.exchange import plain_tensors
from hetmp.slicing import SlicedModel


@torch.no_grad()
def clip_grad_norm_(model: SlicedModel, max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale the gradients of a sliced model so that their norm is at most *max_norm*.

    The norm is that of all gradients as if they were one vector, over all ranks, as
    ``torch.nn.utils.clip_grad_norm_`` computes it for the unsliced model. (torch's own, on a
    sliced model, sees this rank's slices only.) Collective.

    Args:
        model: a model made by ``slice_model``, after ``backward()``.
        max_norm: 0 or more.
        norm_type: p of the p-norm, above 0; ``math.inf`` for the largest absolute value.

    Returns:
        The norm before clipping: a float64 scalar on the CPU, the same on every rank.

    Raises:
        HetmpError: on every rank, for a *max_norm* or *norm_type* out of range.
    """
    if not max_norm >= 0:
        raise AgreedError(f"max_norm is 0 or more, got {max_norm}")
    with plain_tensors():
        norm = grad_norm(model, norm_type)
        scale = min(1.0, max_norm / (norm + 1e-6))  # the constant is torch's
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return torch.tensor(norm, dtype=torch.float64)


@torch.no_grad()
def grad_norm(model: SlicedModel, norm_type: float = 2.0) -> float:
    """Return the norm of all gradients of a sliced model, as if one vector. Collective.

    Summed in float64; 0 without gradients, NaN where any gradient is NaN.

    Args:
        model: a model made by ``slice_model``, after ``backward()``.
        norm_type: p of the p-norm, above 0; ``math.inf`` for the largest absolute value.

    Returns:
        The same number on every rank.

    Raises:
        HetmpError: on every rank, for a *norm_type* out of range.
    """
    if not norm_type > 0:
        raise AgreedError(f"norm_type is above 0 (math.inf for the maximum), got {norm_type}")
    runtime = model.hetmp
    sliced, whole = 0.0, 0.0
    with plain_tensors():
        for name, parameter in model.named_parameters():
            if parameter.grad is None or parameter.grad.numel() == 0:
                continue
            size = float(torch.linalg.vector_norm(parameter.grad, norm_type, dtype=torch.float64))
            power = size if math.isinf(norm_type) else size**norm_type
            if runtime.table[name].state != FULL:
                sliced = _joined(sliced, power, norm_type)
            else:
                whole = _joined(whole, power, norm_type)
    # A replicated parameter counts once: every rank takes rank 0's sum for it.
    marks = runtime.group.allgather(np.array([sliced, whole]))
    total = float(marks[0, 1])
    for power in marks[:, 0]:
        total = _joined(total, float(power), norm_type)
    return total if math.isinf(norm_type) else total ** (1 / norm_type)


def _joined(total: float, power: float, norm_type: float) -> float:
    # max() would lose a NaN that comes second; numpy's maximum keeps it.
    return float(np.maximum(total, power)) if math.isinf(norm_type) else total + power
