"""ResNet-18 and ResNet-50.

Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR
2016, table 1. A bottleneck that halves the map has its stride in the 3x3 convolution, not in the
first 1x1 of the paper: it costs a little more, and it is how the weights are published today.

An image with a side below 64, such as one of CIFAR's, gets the small-image variant: a 3x3 first
convolution of stride 1 and no max pooling, so that the map is halved three times instead of five.

Layers are named as in torchvision, so its published weights load with ``load_state_dict``.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from hetmp.models.network import Network, is_small, padded_convolution, scaled

FILTERS = (64, 128, 256, 512)
"""Of the four stages, before a bottleneck's expansion."""


class _Residual(nn.Module):
    """The shortcut past the layers, which both blocks share.

    Where the layers change the shape, a 1x1 convolution with batch norm changes it alike.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                padded_convolution(before, after, 1, stride), nn.BatchNorm2d(after)
            )

    def _past(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(_Residual):
    """Two 3x3 convolutions: (n, before, h, w) to (n, filters, ceil(h / stride), ...)."""

    expansion = 1
    """Output channels for each of *filters*."""

    def __init__(self, before: int, filters: int, stride: int) -> None:
        super().__init__(before, filters, stride)
        self.conv1 = padded_convolution(before, filters, 3, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = padded_convolution(filters, filters, 3)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self._past(x))


class Bottleneck(_Residual):
    """1x1, 3x3 and 1x1: (n, before, h, w) to (n, 4 * filters, ceil(h / stride), ...)."""

    expansion = 4
    """Output channels for each of *filters*."""

    def __init__(self, before: int, filters: int, stride: int) -> None:
        after = self.expansion * filters
        super().__init__(before, after, stride)
        self.conv1 = padded_convolution(before, filters, 1)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = padded_convolution(filters, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = padded_convolution(filters, after, 1)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self._past(x))


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    input_shape: tuple[int, int, int],
    classes: int,
    width: float,
) -> nn.Sequential:
    """Input (n, c, h, w), output (n, classes), floating point as the parameters."""
    channels, *image = input_shape
    stem = before = scaled(FILTERS[0], width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if is_small(image):
        layers["conv1"] = padded_convolution(channels, stem, 3)
    else:
        layers["conv1"] = padded_convolution(channels, stem, 7, stride=2)
    layers["bn1"] = nn.BatchNorm2d(stem)
    layers["relu"] = nn.ReLU(inplace=True)
    if not is_small(image):
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    for number, (filters, depth) in enumerate(zip(FILTERS, depths, strict=True), start=1):
        filters = scaled(filters, width)
        blocks = []
        for place in range(depth):
            blocks.append(block(before, filters, stride=2 if number > 1 and place == 0 else 1))
            before = block.expansion * filters
        layers[f"layer{number}"] = nn.Sequential(*blocks)
    layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before, classes)
    return nn.Sequential(layers)


RESNET18 = Network(
    "resnet18",
    "ResNet-18: residual blocks",
    (3, 224, 224),
    1000,
    partial(_resnet, BasicBlock, (2, 2, 2, 2)),
)
RESNET50 = Network(
    "resnet50",
    "ResNet-50: residual bottlenecks",
    (3, 224, 224),
    1000,
    partial(_resnet, Bottleneck, (3, 4, 6, 3)),
)
