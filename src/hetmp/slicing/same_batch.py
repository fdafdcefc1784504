"""Checks that all ranks have the same batch: an unseeded shuffle trains on garbage.

So are the exchanges: those of the first step one by one, later ones when the next step begins.
"""

import numpy as np
import torch
from torch import Tensor

from hetmp.cluster import AgreedError, Group

STEPS = 3
"""How many batches are compared."""

_DIMS = 8


class SameBatch:
    """Compares the first batches over the ranks, up to rounding."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.left = STEPS

    def check(self, *tensors: Tensor) -> None:
        """Compare a batch's tensors over the ranks; collective while batches are compared.

        Raises:
            AgreedError: a rank has another shape or other values than rank 0.
        """
        if self.group.size == 1:
            return
        if self.left or self.group.recorder.comparing:
            self.group.compare_exchanges(each=self.left == STEPS)
        if self.left == 0:
            return
        self.left -= 1
        for x in tensors:
            self._compare(x)

    def _compare(self, x: Tensor) -> None:
        marks = self.group.allgather(_mark(x), "marks of the batch")
        shapes = [tuple(int(size) for size in mark[1 : 1 + int(mark[0])]) for mark in marks]
        for rank, (mark, shape) in enumerate(zip(marks, shapes, strict=True)):
            if shape != shapes[0]:
                raise AgreedError(
                    f"rank {rank} has a batch of shape {shape}, rank 0 of shape {shapes[0]}: give "
                    "every rank the whole batch"
                )
            if mark[-3] != marks[0][-3]:
                raise AgreedError(
                    f"the input requires a gradient on only one of the ranks 0 and {rank}: set "
                    "requires_grad to the same on all ranks"
                )
            # Devices may round alike data differently, so compare to 1e-4 of its size.
            if not np.allclose(mark[-2:], marks[0][-2:], rtol=0, atol=1e-4 * abs(marks[0][-1])):
                raise AgreedError(
                    f"rank {rank} has a different batch from rank 0: give every rank the same "
                    "whole batch in the same order (shuffle with the same seed on all ranks)"
                )


def _mark(x: Tensor) -> np.ndarray:
    """Return (dims, sizes, gradient wanted, projection on a fixed pattern, norm) of *x*."""
    mark = np.zeros(_DIMS + 4)
    mark[0] = min(x.dim(), _DIMS)
    mark[1 : 1 + min(x.dim(), _DIMS)] = x.shape[:_DIMS]
    mark[-3] = x.requires_grad
    flat = x.detach().reshape(-1).to("cpu", torch.float64)
    # The golden ratio's multiples are spread evenly, so no reordering of a batch keeps the sum.
    pattern = torch.arange(flat.numel(), dtype=torch.float64).mul_(0.6180339887498949).frac_()
    norm = float(flat.norm())
    mark[-2] = float(flat @ (pattern - 0.5))
    mark[-1] = norm
    return np.nan_to_num(mark, nan=-1.0)
