"""U-Net: an image in, the class of every pixel out.

Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net: convolutional networks for biomedical image
segmentation", MICCAI 2015, figure 1: 64 channels, twice as many after each of four poolings, and
the same way back with transposed convolutions and the maps of the way down beside them.

It differs from the paper in this: the 3x3 convolutions are padded, so that the output has the
input's size and no map is cropped; batch norm stands behind each of them and has their bias;
there is no dropout at the bottom.

It has as many poolings, at most four, as the image's sides can be halved without a rest: three
for 8x8, two for 100x100. Fewer poolings leave out the lowest levels with their channels.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.models.network import Network, he_start, scaled

FILTERS = (64, 128, 256, 512, 1024)
"""Of the level at the image's size, and of the levels below."""


def _level(before: int, after: int, **first: nn.Module) -> nn.Sequential:
    """The layers *first*, then (n, before, h, w) to (n, after, h, w) by two 3x3 convolutions."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(first)
    for number in (1, 2):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers[f"conv{number}"] = he_start(convolution)
        layers[f"norm{number}"] = nn.BatchNorm2d(after)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        before = after
    return nn.Sequential(layers)


class UNet(nn.Module):
    """(n, channels, h, w) to (n, classes, h, w), floating point as the parameters.

    *filters* are the channels of the levels from the top; with d of them the sides are
    multiples of 2**(d - 1).
    """

    def __init__(self, channels: int, classes: int, filters: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList([_level(channels, filters[0])])
        for above, below in pairwise(filters):
            self.down.append(_level(above, below, pool=nn.MaxPool2d(2)))
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        for below, above in pairwise(reversed(filters)):
            self.up.append(nn.ConvTranspose2d(below, above, 2, stride=2))
            self.join.append(_level(2 * above, above))
        self.head = nn.Conv2d(filters[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for level in self.down:
            x = level(x)
            passed.append(x)
        beside = reversed(passed[:-1])
        for up, join, left in zip(self.up, self.join, beside, strict=True):
            x = join(torch.cat([left, up(x)], 1))
        return self.head(x)


def _unet(input_shape: tuple[int, int, int], classes: int, width: float) -> UNet:
    """Input (n, c, h, w), output (n, classes, h, w), floating point as the parameters.

    Raises:
        HetmpError: a side of the image is odd.
    """
    channels, *image = input_shape
    for name, side in zip(("height", "width"), image, strict=True):
        if side % 2:
            raise HetmpError(
                f"unet cannot take images of {image[0]}x{image[1]}: the {name} {side} is odd; "
                f"crop or pad it to a multiple of 2 for one pooling, of 16 for all four"
            )
    levels = len(FILTERS)
    while any(side % 2 ** (levels - 1) for side in image):
        levels -= 1
    return UNet(channels, classes, [scaled(filters, width) for filters in FILTERS[:levels]])


UNET = Network("unet", "U-Net: the class of every pixel", (1, 512, 512), 2, _unet)
