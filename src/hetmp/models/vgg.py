"""VGG-11 and VGG-16, without batch norm.

Source: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, table 1, configurations A and D.

An image that leaves a final map of 7x7 or larger (sides of 224 and more) gets the published
head: adaptive average pooling to 7x7, then 4096, 4096 and the classes. Any smaller image, such
as one of CIFAR's, gets the small-image variant: what is left is flattened as it stands, then
512, 512 and the classes.

Layers are named as in torchvision, so its published weights load with ``load_state_dict``.
"""

from collections import OrderedDict
from functools import partial

from torch import nn

from hetmp.models.network import Network, he_start, map_size, scaled

PUBLISHED_MAP = 7
"""Side of the map that the published head flattens."""

POOL = 0
"""Stands for a max pooling among the filter counts of a configuration."""

A = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
D = (64, 64, POOL, 128, 128, POOL, *(256,) * 3, POOL, *(512,) * 3, POOL, *(512,) * 3, POOL)


def _vgg(
    name: str,
    configuration: tuple[int, ...],
    input_shape: tuple[int, int, int],
    classes: int,
    width: float,
) -> nn.Sequential:
    """Input (n, c, h, w), output (n, classes), floating point as the parameters."""
    channels, *image = input_shape
    layers: list[nn.Module] = []
    for filters in configuration:
        if filters == POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        filters = scaled(filters, width)
        layers += [he_start(nn.Conv2d(channels, filters, 3, padding=1)), nn.ReLU()]
        channels = filters
    features = nn.Sequential(*layers)

    left_h, left_w = map_size(name, features, image)
    network: OrderedDict[str, nn.Module] = OrderedDict(features=features)
    hidden = 512
    if min(left_h, left_w) >= PUBLISHED_MAP:
        network["avgpool"] = nn.AdaptiveAvgPool2d(PUBLISHED_MAP)
        left_h = left_w = PUBLISHED_MAP
        hidden = 4096
    hidden = scaled(hidden, width)
    network["flatten"] = nn.Flatten()
    network["classifier"] = nn.Sequential(
        nn.Linear(channels * left_h * left_w, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, classes),
    )
    return nn.Sequential(network)


VGG11 = Network("vgg11", "VGG-11 (configuration A)", (3, 224, 224), 1000, partial(_vgg, "vgg11", A))
VGG16 = Network("vgg16", "VGG-16 (configuration D)", (3, 224, 224), 1000, partial(_vgg, "vgg16", D))
