"""Batch norm of images that lie on several ranks: its statistics are those of the whole batch.

Each rank finds count, mean and sum of squares around its mean of each channel; ranks gather these
and merge them, as Chan, Golub and LeVeque, *Algorithms for computing the sample variance* (1983).
On the way back two sums for each channel are summed over the ranks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hetmp.cluster import Group
from hetmp.core.partition import Layout, Partition
from hetmp.core.state import FULL, PARTIAL, Sliced
from hetmp.exchange import Exchange
from hetmp.ops.own_forward import OwnForward


class SharedBatchNorm(OwnForward):
    """What a batch norm runs on a rank that holds some images of the batch.

    In evaluation with running statistics it is torch's own, and nothing is exchanged.
    """

    note = "statistics of the whole batch"

    def __init__(self, layer: nn.Module, group: Group, wire: str | None) -> None:
        """
        Args:
            layer: a ``BatchNorm1d``, ``2d`` or ``3d``, whole.
            group: the ranks that hold the batch.
            wire: see ``Exchange``.
        """
        super().__init__(layer)
        numbers = Layout.of(Partition((2 * self.layer.num_features + 1,) * group.size))
        what = "a batch norm's statistics"
        layer.add_module("statistics", Exchange(group, Sliced(numbers, 0), FULL, wire, what))
        layer.add_module("sums", Exchange(group, PARTIAL, FULL, wire, "a batch norm's sums"))

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize (images of this rank, c, ...). Collective where it takes statistics."""
        layer = self.layer
        tracked = layer.running_mean is not None
        if not layer.training and tracked:
            output: Tensor = self.usual(x)
            return output
        normalized, mean, variance, count = _Normalize.apply(x, layer.weight, layer.bias, self)
        if layer.training and tracked:
            self._track(mean, variance, int(count))
        result: Tensor = normalized
        return result

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Take a batch's *mean* and *variance* into the running statistics, as torch does."""
        layer = self.layer
        layer.num_batches_tracked.add_(1)
        momentum = layer.momentum
        if momentum is None:
            momentum = 1 / float(layer.num_batches_tracked)
        unbiased = variance * (count / (count - 1))
        for running, new in ((layer.running_mean, mean), (layer.running_var, unbiased)):
            running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: SharedBatchNorm
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layer = norm.layer
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        own = _statistics(wide)
        gathered = layer.statistics.move(own, blocking=True).wait()
        if layer.statistics.group.rehearsing:  # made-up squares may be negative
            gathered = own.repeat(layer.statistics.group.size)
        mean, variance, count = _merged(gathered.view(-1, len(own)))
        mean, variance = mean.to(wide.dtype), variance.to(wide.dtype)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.layer, ctx.eps, ctx.count = layer, layer.eps, float(count)
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.set_materialize_grads(False)
        # With statistics that are given, torch does no more than one pass.
        slope, shift = (None if p is None else p.to(wide.dtype) for p in (weight, bias))
        normalized = F.batch_norm(wide, mean, variance, slope, shift, eps=layer.eps)
        return normalized.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        wide = x.to(mean.dtype)
        gradient = gradient.to(mean.dtype)
        shape = [1, -1] + [1] * (x.dim() - 2)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        scale = torch.rsqrt(variance + ctx.eps)
        centred = wide - mean.view(shape)
        sum_of_gradients = gradient.sum(axes)
        slopes = (gradient * centred).sum(axes) * scale
        sums = torch.cat([sum_of_gradients, slopes])
        total = ctx.layer.sums.move_back(sums, blocking=True).wait()
        onward = None
        if ctx.needs_input_grad[0]:
            first, second = (total / ctx.count).chunk(2)
            # In place: the batch is large, and nobody else has this tensor.
            centred.mul_((-second * scale).view(shape)).add_(gradient).sub_(first.view(shape))
            factor = scale if weight is None else scale * weight.to(scale.dtype)
            onward = centred.mul_(factor.view(shape)).to(x.dtype)
        wanted = ctx.needs_input_grad
        slope = slopes.to(weight.dtype) if wanted[1] else None
        shift = sum_of_gradients.to(weight.dtype) if wanted[2] else None
        return onward, slope, shift, None


def _statistics(x: Tensor) -> Tensor:
    """Return the count, means and sums of squares around them of this rank: (1 + 2 c,)."""
    channels = x.shape[1]
    count = x.numel() // channels
    numbers = x.new_zeros(1 + 2 * channels)
    if count:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x, axes, correction=0)
        numbers[0], numbers[1 : 1 + channels] = count, mean
        numbers[1 + channels :] = variance * count
    return numbers


def _merged(of_ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and count of the whole from those of the ranks: (ranks, 1 + 2 c).

    In float64, in the order of the ranks: all of them have the same to the last bit.
    """
    numbers = of_ranks.double()
    counts, (means, squares) = numbers[:, :1], numbers[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    between = (counts * (means - mean) ** 2).sum(0)
    return mean, (squares.sum(0) + between) / count, count
