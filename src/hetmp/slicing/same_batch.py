"""Checks that all ranks have the same numbers in a batch: an unseeded shuffle trains on garbage.

Sizes are compared in every pass, by ``meeting``; numbers now and then, as that takes a message.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hetmp.cluster import AgreedError, Group

FIRST = 3
"""How many batches are compared at first, one after the other."""

EVERY = 64
"""Later one of so many is compared."""

COMPARED_NUMBERS = 2**20
"""About as many numbers of a tensor are compared, spread evenly over it, or all if it has fewer."""


def is_due(number: int) -> bool:
    """Return whether the numbers of a batch are compared: its *number* is that of those before."""
    return number < FIRST or number % EVERY == 0


class SameBatch:
    """Compares the first batches over the ranks, and now and then a later one."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._number = 0

    def check(self, *tensors: Tensor) -> None:
        """Compare a batch's tensors, of equal sizes, over the ranks; collective when it is due.

        Raises:
            AgreedError: a rank has other numbers than rank 0.
        """
        if self.group.size > 1 and is_due(self._number):
            compare_numbers(self.group, tensors, f"batch {self._number + 1}")
        self._number += 1


def compare_numbers(
    group: Group, tensors: Sequence[Tensor], place: str, rounding: float = 1e-4
) -> None:
    """Compare the numbers of *tensors* over the ranks of *group*, up to rounding. Collective.

    Args:
        tensors: of any shape, the same on all ranks.
        place: which batch or pass it is, for the reader.
        rounding: what alike numbers may differ by, in parts of a tensor's norm: devices round
            alike data differently.

    Raises:
        AgreedError: a rank has other numbers than rank 0.
    """
    marks = group.allgather(np.array([_mark(x) for x in tensors]), "marks of the batch")
    near = np.abs(marks - marks[0]) <= rounding * np.abs(marks[0, :, 1:])  # (ranks, tensors, 2)
    for rank in np.flatnonzero(~near.all(axis=(1, 2))):
        raise AgreedError(
            f"{place}: rank {rank} has a different batch from rank 0: give every rank the same "
            "whole batch in the same order (shuffle with the same seed on all ranks)"
        )


def _mark(x: Tensor) -> tuple[float, float]:
    """Return (projection on a fixed pattern, norm) of the numbers of *x*."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    flat = x.reshape(-1)
    # An odd step, or it may meet only one column of every image.
    flat = flat[:: -(-flat.numel() // COMPARED_NUMBERS) | 1].to("cpu", torch.float64)
    # The golden ratio's multiples are spread evenly, so no reordering of a batch keeps the sum.
    pattern = torch.arange(flat.numel(), dtype=torch.float64).mul_(0.6180339887498949).frac_()
    mark = np.nan_to_num([float(flat @ (pattern - 0.5)), float(flat.norm())], nan=-1.0)
    return float(mark[0]), float(mark[1])
