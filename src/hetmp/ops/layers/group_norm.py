"""Normalization over several channels: group, layer and root-mean-square norm.

Where a rank holds all channels of a statistic, torch's own layer runs on its slice. Where it does
not, each rank sums over its own channels and the sums are exchanged (partial -> full): one
number per sample and group, twice, so that the variance is taken around the true mean.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetmp.cluster import Group
from hetmp.core.open_axis import Axis
from hetmp.core.partition import Layout
from hetmp.core.state import FULL, PARTIAL, L, Sliced, State, channels_of
from hetmp.exchange import Exchange
from hetmp.ops.call import Call, OperatorRun
from hetmp.ops.own_forward import OwnForward
from hetmp.ops.rule import Cuts, LayerForm, Rule, cut_along, sized

FINE = 16
"""From so many groups on, ranks are given whole ones: each is a small part of the axis."""


def _group_norm(
    weight: Tensor, bias: Tensor | None, num_groups: int, eps: float = 1e-5
) -> nn.Module:
    return nn.GroupNorm(num_groups, weight.shape[0], eps=eps)


_SUMS = "a normalization's sums"
"""The name of what the ranks sum, for messages."""


class GroupNorm(Rule[nn.GroupNorm]):
    """Group norm of (n, c, ...): a mean and a variance per sample and group of channels."""

    layers = (nn.GroupNorm,)
    by_image = True
    harmless = ("eps",)
    forms: ClassVar = {
        F.group_norm: LayerForm(
            ("input", "num_groups", "weight", "bias", "eps"), ("weight", "bias"), _group_norm
        )
    }
    runs_empty = False

    def input_channels(self, layer: nn.GroupNorm) -> int:
        return int(layer.num_channels)

    def gives(self, call: Call[nn.GroupNorm], source: Sliced[L]) -> State[L] | None:
        if source.axis != 1:
            return None
        layout: object = source.layout
        if isinstance(layout, Axis) and call.whole_layer.num_groups >= FINE:
            layout.grouped(_group_size(call.whole_layer))
        return source

    def cuts(self, run: OperatorRun[L, nn.GroupNorm]) -> Cuts[L]:
        return cut_along(run.whole_layer, {"weight": 0, "bias": 0}, run.source)

    def resize(
        self, layer: nn.GroupNorm, run: OperatorRun[Layout, nn.GroupNorm], count: int
    ) -> None:
        """Set the groups and channels of *layer* for *count* channels of the *run*'s layer."""
        layer.num_groups = max(1, count // _group_size(run.whole_layer))
        layer.num_channels = count

    def local(
        self, run: OperatorRun[Layout, nn.GroupNorm], group: Group, device: torch.device
    ) -> nn.Module:
        """Return the norm of this rank's channels, with exchanges if groups lie across ranks.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        layout = channels_of(run.source)
        size = _group_size(run.whole_layer)
        if layout is None or group.size == 1 or layout.grouped(size) is not None:
            return super().local(run, group, device)
        cuts = self.cuts(run)
        counts = {name: cut.layout.counts[group.rank] for name, cut in cuts.items()}
        owned = [
            torch.arange(piece.start, piece.stop) // size for piece in layout.slices(group.rank)
        ]
        local = sized(run.whole_layer, cuts, counts, device)
        SharedGroupNorm(
            local, torch.cat(owned).to(device), Exchange(group, PARTIAL, FULL, run.wire, _SUMS)
        )
        return local


def _group_size(layer: nn.GroupNorm) -> int:
    return int(layer.num_channels) // int(layer.num_groups)


class SharedGroupNorm(OwnForward):
    """Group norm of this rank's channels, where groups lie across ranks."""

    note = "groups across ranks"

    def __init__(self, layer: nn.GroupNorm, group_of: Tensor, total: Exchange) -> None:
        """
        Args:
            layer: a ``GroupNorm`` with this rank's slopes and biases.
            group_of: the group of each channel of this rank, (c,).
            total: sums the ranks' summands.
        """
        super().__init__(layer)
        self._size = _group_size(layer)
        layer.num_channels = len(group_of)
        layer.add_module("sum", total)
        self._group_of = group_of

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize (n, this rank's channels, ...). Collective."""
        plane = math.prod(x.shape[2:])
        flat = x.reshape(x.shape[0], x.shape[1], plane)  # (n, c, plane)
        wide = flat.float() if x.dtype in (torch.float16, torch.bfloat16) else flat
        centred = wide - self._mean(wide)
        scaled = centred * torch.rsqrt(self._mean(centred.square()) + self.layer.eps)
        if self.layer.weight is not None:
            scaled = scaled * self.layer.weight.view(-1, 1) + self.layer.bias.view(-1, 1)
        return scaled.to(x.dtype).view(x.shape)

    def _mean(self, x: Tensor) -> Tensor:
        """Return the mean of each channel's group: (n, c, 1)."""
        sums = x.new_zeros(x.shape[0], self.layer.num_groups)
        group_of = self._group_of.to(x.device)
        sums = sums.index_add(1, group_of, x.sum(2))
        means = self.layer.sum(sums) / (self._size * x.shape[2])
        chosen: Tensor = means.index_select(1, group_of).unsqueeze(2)
        return chosen


_LayerNorm = nn.LayerNorm | nn.RMSNorm


def _layer_norm(
    weight: Tensor, bias: Tensor | None, normalized_shape: Sequence[int], eps: float = 1e-5
) -> nn.Module:
    return nn.LayerNorm(tuple(normalized_shape), eps=eps, bias=bias is not None)


class LayerNorm(Rule[_LayerNorm]):
    """Layer norm over the last axes; slopes and biases are cut like the channels among them."""

    layers = (nn.LayerNorm, nn.RMSNorm)
    harmless = ("eps",)
    forms: ClassVar = {
        F.layer_norm: LayerForm(
            ("input", "normalized_shape", "weight", "bias", "eps"), ("weight", "bias"), _layer_norm
        )
    }

    def gives(self, call: Call[_LayerNorm], source: Sliced[L]) -> State[L] | None:
        return source

    def cuts(self, run: OperatorRun[L, _LayerNorm]) -> Cuts[L]:
        axis = _normalized_axis(run)
        if axis is None:
            return {}
        return cut_along(run.layer, {"weight": axis, "bias": axis}, run.source)

    def local(
        self, run: OperatorRun[Layout, _LayerNorm], group: Group, device: torch.device
    ) -> nn.Module:
        """Return the norm of this rank's share, with exchanges if a normalized axis is cut.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        if _normalized_axis(run) is None or group.size == 1:
            return super().local(run, group, device)
        cuts = self.cuts(run)
        counts = {name: cut.layout.counts[group.rank] for name, cut in cuts.items()}
        local = sized(run.whole_layer, cuts, counts, device)
        total = Exchange(group, PARTIAL, FULL, run.wire, _SUMS)
        SharedLayerNorm(local, total)
        return local


def _normalized_axis(run: OperatorRun[L, _LayerNorm]) -> int | None:
    """Return which of the normalized axes is cut, None if none is."""
    if not isinstance(run.source, Sliced):
        return None
    axis = run.source.axis - (run.call.operand.dims - len(run.whole_layer.normalized_shape))
    return axis if axis >= 0 else None


class SharedLayerNorm(OwnForward):
    """Layer (or root-mean-square) norm over channels of which each rank holds some."""

    note = "means across ranks"

    def __init__(self, layer: _LayerNorm, total: Exchange) -> None:
        super().__init__(layer)
        layer.add_module("sum", total)
        self._shape: Sequence[int] = tuple(layer.normalized_shape)  # of the whole

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize (..., this rank's share of the normalized axes). Collective."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        layer = self.layer
        if isinstance(layer, nn.LayerNorm):
            wide = wide - self._mean(wide)
        eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
        scaled = wide * torch.rsqrt(self._mean(wide.square()) + eps)
        if layer.weight is not None:
            scaled = scaled * layer.weight
        if getattr(layer, "bias", None) is not None:
            scaled = scaled + layer.bias
        return scaled.to(x.dtype)

    def _mean(self, x: Tensor) -> Tensor:
        axes = tuple(range(-len(self._shape), 0))
        mean: Tensor = self.layer.sum(x.sum(axes, keepdim=True)) / math.prod(self._shape)
        return mean
