"""A network of a user's own, for ``--model own_network:build``, and one that goes wrong."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def build(input_shape: Sequence[int], classes: int) -> nn.Module:
    """Two convolutions with prime channel counts, dropout and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.1),
        nn.Conv2d(5, 7, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(28, classes),
    )


def smooth(input_shape: Sequence[int], classes: int) -> nn.Module:
    """A network without kinks: no rounding of its input can choose another branch."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 11, 3, padding=1),
        nn.BatchNorm2d(11),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(11, 23, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(92, classes),
    )


def diverging(input_shape: Sequence[int], classes: int) -> nn.Module:
    """A network whose output is not a number from the start."""
    network = build(input_shape, classes)
    with torch.no_grad():
        network[-1].bias.fill_(torch.nan)
    return network


def with_a_layer_of_my_own(input_shape: Sequence[int], classes: int) -> nn.Module:
    """A network with a layer that hetmp has no rule for."""

    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    return nn.Sequential(
        Doubled(input_shape[0]),
        nn.Conv2d(input_shape[0], 5, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, classes),
    )


def per_pixel(input_shape: Sequence[int], classes: int) -> nn.Module:
    """A class for every pixel, by two convolutions that keep the image's size."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 7, 3, padding=1),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 5, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(5, classes, 1),
    )


def by_value(input_shape: Sequence[int], classes: int) -> nn.Module:
    """A network whose constructor looks at values: of rates, of a list and of a weight."""
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
    channels, _ = (torch.arange(2) + 7).tolist()
    first = nn.Conv2d(input_shape[0], channels, 3)
    if first.weight.std() > 10:
        raise ArithmeticError("a weight as torch starts it is small")
    return nn.Sequential(
        first,
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Dropout(rates[2]),
        nn.Conv2d(channels, 5, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, classes),
    )


def by_too_large_a_value(input_shape: Sequence[int], classes: int) -> nn.Module:
    """A constructor that fails wherever it runs, and first where it looks at a value."""
    rate = torch.linspace(0, 0.1, 3)[2].item()
    return nn.Sequential(nn.Conv2d(input_shape[0], 5, 3), nn.Dropout(1 + rate))
