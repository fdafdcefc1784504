"""The two networks of the paper whose method hetmp follows.

Source: S. Moreno-Alvarez, J. M. Haut, M. E. Paoletti, J. A. Rico-Gallego, "Heterogeneous model
parallelism for deep neural networks", Neurocomputing 441 (2021), pages 1-12. The authors'
scripts pad the MNIST convolutions to keep the image's size; here they do not pad.
"""

from collections import OrderedDict

from torch import nn

from hetmp.models.network import Network, he_start, map_size, scaled


def _mnist(input_shape: tuple[int, int, int], classes: int, width: float) -> nn.Sequential:
    """Three convolutions, average pooling, two fully connected layers.

    Input (n, c, h, w), output (n, classes), floating point as the parameters.
    """
    channels, *image = input_shape
    features: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (filters, kernel) in enumerate(((60, 7), (120, 5), (240, 3)), start=1):
        filters = scaled(filters, width)
        features[f"conv{number}"] = he_start(nn.Conv2d(channels, filters, kernel))
        features[f"relu{number}"] = nn.ReLU()
        channels = filters
    features["pool"] = nn.AvgPool2d(2)
    return _with_head("paper-mnist", features, channels, image, scaled(128, width), classes)


def _cifar(input_shape: tuple[int, int, int], classes: int, width: float) -> nn.Sequential:
    """Four pairs of convolutions with max pooling behind each, two fully connected layers.

    Input (n, c, h, w), output (n, classes), floating point as the parameters.
    """
    channels, *image = input_shape
    features: OrderedDict[str, nn.Module] = OrderedDict()
    for number, filters in enumerate((60, 60, 120, 120, 240, 240, 480, 480), start=1):
        filters = scaled(filters, width)
        features[f"conv{number}"] = he_start(nn.Conv2d(channels, filters, 3, padding=1))
        features[f"relu{number}"] = nn.ReLU()
        if number % 2 == 0:
            features[f"pool{number // 2}"] = nn.MaxPool2d(2)
        channels = filters
    return _with_head("paper-cifar", features, channels, image, scaled(256, width), classes)


def _with_head(
    name: str,
    features: "OrderedDict[str, nn.Module]",
    channels: int,
    image: list[int],
    hidden: int,
    classes: int,
) -> nn.Sequential:
    layers = nn.Sequential(features)
    height, width = map_size(name, layers, image)
    classifier = nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(channels * height * width, hidden),
            relu1=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )
    return nn.Sequential(OrderedDict(features=layers, flatten=nn.Flatten(), classifier=classifier))


MNIST = Network(
    "paper-mnist", "3 convolutions (60, 120, 240), after the paper", (1, 28, 28), 10, _mnist
)
CIFAR = Network(
    "paper-cifar", "8 convolutions (60 to 480), after the paper", (3, 32, 32), 10, _cifar
)
