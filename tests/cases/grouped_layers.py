"""Convolutions in groups."""

from torch import nn

CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


SIZES = {3: (3, 3, 9), 4: (3, 3, 6, 7), 5: (2, 3, 3, 5, 4)}


# (dims, channels taken, channels given, the layer).
GROUPED = {
    "conv1d-2": (3, 10, 14, lambda: nn.Conv1d(10, 14, 3, groups=2, padding=1)),
    "conv1d-depthwise": (3, 7, 7, lambda: nn.Conv1d(7, 7, 3, groups=7, padding="same")),
    "conv1d-fewer": (3, 14, 7, lambda: nn.Conv1d(14, 7, 2, groups=7, dilation=2, bias=False)),
    "conv2d-2": (4, 10, 6, lambda: nn.Conv2d(10, 6, 3, groups=2, stride=2, padding=(2, 1))),
    "conv2d-3": (
        4,
        9,
        15,
        lambda: nn.Conv2d(9, 15, (3, 2), groups=3, padding="same", dilation=(1, 2)),
    ),
    "conv2d-depthwise": (4, 11, 11, lambda: nn.Conv2d(11, 11, 3, groups=11, padding=1, bias=False)),
    "conv2d-multiplier": (4, 5, 15, lambda: nn.Conv2d(5, 15, 3, groups=5, padding=1)),
    "conv2d-one-channel": (4, 1, 3, lambda: nn.Conv2d(1, 3, 3, groups=1, padding=1)),
    "conv2d-circular": (
        4,
        7,
        14,
        lambda: nn.Conv2d(7, 14, 3, groups=7, padding=(1, 2), padding_mode="circular"),
    ),
    "conv2d-reflect": (
        4,
        6,
        6,
        lambda: nn.Conv2d(6, 6, 3, groups=2, padding=1, padding_mode="reflect"),
    ),
    "conv2d-replicate": (
        4,
        6,
        9,
        lambda: nn.Conv2d(6, 9, 2, groups=3, padding="same", padding_mode="replicate"),
    ),
    "conv3d-3": (5, 6, 9, lambda: nn.Conv3d(6, 9, (1, 3, 2), groups=3, padding=(0, 1, 0))),
    "conv3d-depthwise": (5, 5, 10, lambda: nn.Conv3d(5, 10, 2, groups=5, stride=(1, 2, 1))),
    "transposed1d-2": (3, 4, 10, lambda: nn.ConvTranspose1d(4, 10, 3, groups=2, stride=2)),
    "transposed1d-depthwise": (
        3,
        7,
        7,
        lambda: nn.ConvTranspose1d(7, 7, 3, groups=7, dilation=2, bias=False),
    ),
    "transposed2d-3": (
        4,
        9,
        6,
        lambda: nn.ConvTranspose2d(9, 6, 3, groups=3, stride=2, output_padding=(1, 0)),
    ),
    "transposed2d-multiplier": (
        4,
        5,
        10,
        lambda: nn.ConvTranspose2d(5, 10, (2, 3), groups=5, stride=(1, 2), padding=(1, 0)),
    ),
    "transposed3d-2": (5, 4, 6, lambda: nn.ConvTranspose3d(4, 6, (1, 2, 2), groups=2)),
}


SCHEMES = (
    ("filters", "filters", "whole", "filters", "inputs"),
    ("whole", "filters", "inputs", "filters", "filters"),
    ("inputs", "whole", "filters", "filters", "whole"),
)
