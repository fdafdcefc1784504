"""A small network for the 8x8 digits: trains in seconds on one core."""

from collections import OrderedDict

from torch import nn

from hetmp.models.network import Network, map_size, scaled


def _digits(input_shape: tuple[int, int, int], classes: int, width: float) -> nn.Sequential:
    """Two convolutions with batch norm, ReLU and max pooling, one fully connected layer.

    Input (n, c, h, w), output (n, classes), floating point as the parameters. Without dropout,
    so that a run can be compared with plain torch number by number.
    """
    channels, *image = input_shape
    features: OrderedDict[str, nn.Module] = OrderedDict()
    for number, filters in enumerate((24, 48), start=1):
        filters = scaled(filters, width)
        features[f"conv{number}"] = nn.Conv2d(channels, filters, 3, padding=1)
        features[f"norm{number}"] = nn.BatchNorm2d(filters)
        features[f"relu{number}"] = nn.ReLU()
        features[f"pool{number}"] = nn.MaxPool2d(2)
        channels = filters
    layers = nn.Sequential(features)
    left_h, left_w = map_size("digits", layers, image)
    classifier = nn.Sequential(OrderedDict(fc=nn.Linear(channels * left_h * left_w, classes)))
    return nn.Sequential(OrderedDict(features=layers, flatten=nn.Flatten(), classifier=classifier))


DIGITS = Network("digits", "2 convolutions with batch norm, for 8x8 digits", (1, 8, 8), 10, _digits)
