"""A small three-dimensional network for hyperspectral images.

After the idea of the 3-D network of Y. Chen, H. Jiang, C. Li, X. Jia, P. Ghamisi, "Deep feature
extraction and classification of hyperspectral images based on convolutional neural networks",
IEEE Transactions on Geoscience and Remote Sensing, 2016: convolve along the spectrum and over
the neighbouring pixels at once, and tell the class of the pixel in the middle. Layers and sizes
are not the paper's but hetmp's own, chosen to be small.

The input it is made for is that of Indian Pines: 200 bands after the removal of those that water
absorbs, 16 classes, and 9x9 pixels around the one in question.
"""

from collections import OrderedDict

from torch import nn

from hetmp.models.network import Network, scaled

LAYERS = ((16, 7), (32, 5), (64, 3))
"""Filters of each convolution and its extent in bands; over the pixels it is 3x3."""


def _hyperspectral(
    input_shape: tuple[int, int, int, int], classes: int, width: float
) -> nn.Sequential:
    """Three convolutions with batch norm and ReLU, the mean of the cube, one linear layer.

    Input (n, c, bands, h, w), output (n, classes), floating point as the parameters. Each
    convolution halves the bands, rounded up, and keeps the pixels, so any cube will do.
    """
    channels = input_shape[0]
    features: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (filters, bands) in enumerate(LAYERS, start=1):
        filters = scaled(filters, width)
        features[f"conv{number}"] = nn.Conv3d(
            channels,
            filters,
            (bands, 3, 3),
            stride=(2, 1, 1),
            padding=(bands // 2, 1, 1),
            bias=False,
        )
        features[f"norm{number}"] = nn.BatchNorm3d(filters)
        features[f"relu{number}"] = nn.ReLU()
        channels = filters
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(features),
            avgpool=nn.AdaptiveAvgPool3d(1),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(OrderedDict(fc=nn.Linear(channels, classes))),
        )
    )


HYPERSPECTRAL = Network(
    "hyperspectral",
    "3 convolutions over bands and pixels",
    (1, 200, 9, 9),
    16,
    _hyperspectral,
)
