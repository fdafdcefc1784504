"""The description of a shipped network, and the size arithmetic that the families share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import nn

from hetmp.core.errors import HetmpError

SMALL_SIDE = 64
"""An image with a side below this gets the small-image variant of ResNet, MobileNetV2, DenseNet."""


@dataclass(frozen=True)
class Network:
    """A network that `build` knows by name."""

    name: str
    """The name that `build` takes."""
    description: str
    """One line for a list of networks."""
    input_shape: tuple[int, ...]
    """Channels and spatial sides of the images it was published for; it takes as many sides."""
    classes: int
    """Number of classes that it was published for."""
    # Any: each function says how many sides it takes, and `registry.build` has counted them.
    build: Callable[[Any, int, float], nn.Module]
    """From (c, *sides) of one image, classes and width to the module."""

    @property
    def sides(self) -> int:
        """How many spatial sides its images have: 2 for a picture, 3 for a cube."""
        return len(self.input_shape) - 1


def scaled(channels: int, width: float) -> int:
    """Return *channels* times *width*, rounded, and at least 1."""
    return max(1, round(channels * width))


_Convolution = TypeVar("_Convolution", bound=nn.Conv1d | nn.Conv2d | nn.Conv3d)


def is_small(image: Iterable[int]) -> bool:
    """Return whether an *image* of those sides gets the small-image variant."""
    return min(image) < SMALL_SIDE


def he_start(convolution: _Convolution) -> _Convolution:
    """Give *convolution* He's start, variance 2 / fan-in and bias 0, and return it.

    Networks without a norm need it: with torch's own start the signal, and with it the gradient,
    loses a factor at every layer, and eight layers later the loss does not move. Networks with
    one may have it too, as most of their papers do.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    # Uniform: on the meta device the normal distribution costs seconds of imports.
    nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def padded_convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution, padded so that only *stride* changes the map. A norm has the bias.

    Args:
        before, after: channels of the input and the output.
        kernel: side of the square window, odd.
    """
    return he_start(nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False))


def map_size(name: str, features: nn.Sequential, image: Iterable[int]) -> tuple[int, ...]:
    """Return the sides that *features* leave of an *image* of those sides.

    Every layer of *features*, nested or not, that changes the size is a convolution or a pooling
    with a square window and no dilation, and no two of them lie side by side.

    Raises:
        HetmpError: nothing is left, so network *name* cannot take the image.
    """
    image = left = tuple(image)
    windows = _windows(features)
    for kernel, stride, padding in windows:
        left = tuple((side + 2 * padding - kernel) // stride + 1 for side in left)
        if min(left) < 1:
            raise HetmpError(
                f"{name} cannot take images of {'x'.join(map(str, image))}: "
                f"the smallest side that works is {_smallest_side(windows)}"
            )
    return left


def _smallest_side(windows: list[tuple[int, int, int]]) -> int:
    side = 1
    for kernel, stride, padding in reversed(windows):
        side = max(1, (side - 1) * stride + kernel - 2 * padding)
    return side


def _windows(features: nn.Sequential) -> list[tuple[int, int, int]]:
    return [
        (_side(layer.kernel_size), _side(layer.stride), _side(layer.padding))
        for layer in features.modules()
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    ]


def _side(size: object) -> int:
    """Torch keeps a square window as n or as (n, n), by the kind of layer."""
    return cast("int", size[0] if isinstance(size, tuple) else size)
