"""DenseNet-121.

Source: G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely connected convolutional
networks", CVPR 2017, table 1, with growth 32, bottlenecks of 4 times the growth and half of the
channels kept between the blocks.

An image with a side below 64, such as one of CIFAR's, gets the small-image variant: a 3x3 first
convolution of stride 1 and no max pooling, so that the map is halved three times instead of five.

Layers are named as in torchvision, so a ``state_dict`` of its DenseNet-121 loads with
``load_state_dict``. The file of published weights has the older names ``norm.1``, ``conv.2``
and so on inside the dense layers, which torchvision makes ``norm1`` and ``conv2`` on loading.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hetmp.models.network import Network, is_small, map_size, padded_convolution, scaled

GROWTH = 32
"""Channels that a dense layer adds."""

BOTTLENECK = 4
"""Channels between a dense layer's two convolutions, for each that it adds."""

DEPTHS = (6, 12, 24, 16)
"""Dense layers of each block."""


class DenseBlock(nn.ModuleDict):
    """Layers that each read the block's input and the outputs of all layers before them.

    (n, before, h, w) to (n, before + depth * growth, h, w), in the order of making.
    """

    def __init__(self, before: int, depth: int, growth: int) -> None:
        super().__init__()
        for number in range(1, depth + 1):
            self[f"denselayer{number}"] = _dense_layer(before, growth)
            before += growth

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for layer in self.values():
            made.append(layer(torch.cat(made, 1)))
        return torch.cat(made, 1)


def _dense_layer(before: int, growth: int) -> nn.Sequential:
    """(n, before, h, w) to (n, growth, h, w): norms come first, as what is read is shared."""
    hidden = BOTTLENECK * growth
    return nn.Sequential(
        OrderedDict(
            norm1=nn.BatchNorm2d(before),
            relu1=nn.ReLU(inplace=True),
            conv1=padded_convolution(before, hidden, 1),
            norm2=nn.BatchNorm2d(hidden),
            relu2=nn.ReLU(inplace=True),
            conv2=padded_convolution(hidden, growth, 3),
        )
    )


def _transition(before: int) -> nn.Sequential:
    """(n, before, h, w) to (n, before // 2, h // 2, w // 2)."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(before),
            relu=nn.ReLU(inplace=True),
            conv=padded_convolution(before, before // 2, 1),
            pool=nn.AvgPool2d(2),
        )
    )


def _densenet121(input_shape: tuple[int, int, int], classes: int, width: float) -> nn.Sequential:
    """Input (n, c, h, w), output (n, classes), floating point as the parameters.

    *width* scales the growth, and with it every other number of channels.
    """
    channels, *image = input_shape
    growth = scaled(GROWTH, width)
    before = 2 * growth
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if is_small(image):
        layers["conv0"] = padded_convolution(channels, before, 3)
    else:
        layers["conv0"] = padded_convolution(channels, before, 7, stride=2)
    layers["norm0"] = nn.BatchNorm2d(before)
    layers["relu0"] = nn.ReLU(inplace=True)
    if not is_small(image):
        layers["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
    for number, depth in enumerate(DEPTHS, start=1):
        layers[f"denseblock{number}"] = DenseBlock(before, depth, growth)
        before += depth * growth
        if number < len(DEPTHS):
            layers[f"transition{number}"] = _transition(before)
            before //= 2
    layers["norm5"] = nn.BatchNorm2d(before)
    features = nn.Sequential(layers)
    map_size("densenet121", features, image)  # refuses an image that the poolings use up
    return nn.Sequential(
        OrderedDict(
            features=features,
            relu=nn.ReLU(inplace=True),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(before, classes),
        )
    )


DENSENET121 = Network(
    "densenet121",
    "DenseNet-121: dense blocks",
    (3, 224, 224),
    1000,
    _densenet121,
)
