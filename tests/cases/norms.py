"""Normalization layers."""

from torch import nn

CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


SIZES = {2: (4, 6), 3: (3, 3, 7), 4: (3, 3, 5, 6), 5: (2, 3, 3, 4, 5)}


class ChannelsLast(nn.Module):
    """A layer that finds the channels on the last axis."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# (dims, channels, the layer).
NORMS = {
    "instance1d-bare": (3, 7, lambda: nn.InstanceNorm1d(7)),
    "instance1d-affine": (3, 7, lambda: nn.InstanceNorm1d(7, affine=True)),
    "instance2d-bare": (4, 7, lambda: nn.InstanceNorm2d(7, eps=1e-3)),
    "instance2d-affine": (4, 7, lambda: nn.InstanceNorm2d(7, affine=True)),
    "instance2d-running": (4, 7, lambda: nn.InstanceNorm2d(7, track_running_stats=True)),
    "instance2d-all": (
        4,
        7,
        lambda: nn.InstanceNorm2d(7, affine=True, track_running_stats=True, momentum=0.3),
    ),
    "instance3d-all": (5, 5, lambda: nn.InstanceNorm3d(5, affine=True, track_running_stats=True)),
    "group-fits": (4, 12, lambda: nn.GroupNorm(6, 12)),
    "group-1": (4, 7, lambda: nn.GroupNorm(1, 7)),
    "group-2": (4, 14, lambda: nn.GroupNorm(2, 14, eps=1e-3)),
    "group-3-no-affine": (4, 9, lambda: nn.GroupNorm(3, 9, affine=False)),
    "group-each": (4, 7, lambda: nn.GroupNorm(7, 7)),
    "group-16": (4, 32, lambda: nn.GroupNorm(16, 32)),
    "group-17": (4, 34, lambda: nn.GroupNorm(17, 34, affine=False)),
    "group-1d": (3, 10, lambda: nn.GroupNorm(5, 10)),
    "group-3d": (5, 6, lambda: nn.GroupNorm(2, 6)),
    "group-features": (2, 10, lambda: nn.GroupNorm(2, 10)),
    "layer-last": (4, 7, lambda: ChannelsLast(nn.LayerNorm(7))),
    "layer-last-no-bias": (4, 7, lambda: ChannelsLast(nn.LayerNorm(7, bias=False))),
    "layer-last-no-affine": (
        4,
        7,
        lambda: ChannelsLast(nn.LayerNorm(7, elementwise_affine=False)),
    ),
    "layer-width-and-last": (4, 7, lambda: ChannelsLast(nn.LayerNorm((6, 7), eps=1e-3))),
    "layer-all": (4, 7, lambda: nn.LayerNorm((7, 5, 6))),
    "layer-all-no-affine": (4, 7, lambda: nn.LayerNorm((7, 5, 6), elementwise_affine=False)),
    "layer-space": (4, 7, lambda: nn.LayerNorm((5, 6))),
    "layer-width": (4, 7, lambda: nn.LayerNorm(6)),
    "layer-length": (3, 7, lambda: nn.LayerNorm(7, bias=False)),
    "layer-features": (2, 11, lambda: nn.LayerNorm(11)),
}


if hasattr(nn, "RMSNorm"):
    NORMS |= {
        "rms-last": (4, 7, lambda: ChannelsLast(nn.RMSNorm(7))),
        "rms-all": (4, 7, lambda: nn.RMSNorm((7, 5, 6), eps=1e-3)),
        "rms-width": (4, 7, lambda: nn.RMSNorm(6, elementwise_affine=False)),
        "rms-features": (2, 7, lambda: nn.RMSNorm(7)),
    }


SCHEMES = (
    ("filters", "inputs"),
    ("inputs", "filters"),
    ("whole", "filters"),
    ("filters", "whole"),
)
