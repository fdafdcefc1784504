"""MobileNetV2.

Source: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: inverted residuals
and linear bottlenecks", CVPR 2018, table 2. Dropout of 0.2 before the last layer, as in the
published code.

An image with a side below 64, such as one of CIFAR's, gets the small-image variant: the first
convolution and the first block of 24 channels have stride 1 instead of 2, so that the map is
halved three times instead of five.

A width other than 1 scales every channel count, the last 1280 too, and rounds to whole numbers;
the paper's multiplier rounds to multiples of 8 and never lowers the 1280.

Layers are named as in torchvision, so its published weights load with ``load_state_dict``.
"""

from collections import OrderedDict

from torch import Tensor, nn

from hetmp.models.network import Network, he_start, is_small, scaled

STEM = 32
"""Filters of the first convolution."""

STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Expansion, output channels and number of blocks."""

STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
"""Of the first convolution, then of each stage's first block."""

SMALL_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)
"""The same for the small-image variant."""

LAST = 1280
"""Filters of the last convolution."""


def _convolution(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution and its batch norm. Padded, so that only *stride* changes the map."""
    convolution = nn.Conv2d(
        before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [he_start(convolution), nn.BatchNorm2d(after)]


def _with_relu(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layers = _convolution(before, after, kernel, stride, groups)
    return nn.Sequential(*layers, nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1; added to the input if it fits.

    (n, before, h, w) to (n, after, ceil(h / stride), ceil(w / stride)). Nothing is widened
    where *expansion* is 1.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * before
        widen = [_with_relu(before, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _with_relu(hidden, hidden, 3, stride, groups=hidden),
            *_convolution(hidden, after, 1),
        )
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


def _mobilenet_v2(input_shape: tuple[int, int, int], classes: int, width: float) -> nn.Sequential:
    """Input (n, c, h, w), output (n, classes), floating point as the parameters."""
    channels, *image = input_shape
    stride, *strides = SMALL_STRIDES if is_small(image) else STRIDES
    before = scaled(STEM, width)
    features: list[nn.Module] = [_with_relu(channels, before, 3, stride)]
    for (expansion, after, blocks), stride in zip(STAGES, strides, strict=True):
        after = scaled(after, width)
        for place in range(blocks):
            features.append(InvertedResidual(before, after, stride if place == 0 else 1, expansion))
            before = after
    last = scaled(LAST, width)
    features.append(_with_relu(before, last, 1))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*features),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes)),
        )
    )


MOBILENET_V2 = Network(
    "mobilenet_v2",
    "MobileNetV2: depthwise convolutions",
    (3, 224, 224),
    1000,
    _mobilenet_v2,
)
