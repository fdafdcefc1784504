"""The networks by name: build one, list them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn

from hetmp.core.checks import image_shape, whole_number
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import unknown_name
from hetmp.models import densenet, digits, hyperspectral, mobilenet, paper, resnet, unet, user, vgg
from hetmp.models.network import Network

_NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        densenet.DENSENET121,
        digits.DIGITS,
        hyperspectral.HYPERSPECTRAL,
        mobilenet.MOBILENET_V2,
        paper.CIFAR,
        paper.MNIST,
        resnet.RESNET18,
        resnet.RESNET50,
        unet.UNET,
        vgg.VGG11,
        vgg.VGG16,
    )
}


@dataclass(frozen=True)
class CatalogRow:
    """One line of the list of networks."""

    name: str
    """The name that `build` takes."""
    description: str
    """A description in a few words."""
    input_shape: tuple[int, ...]
    """Channels and spatial sides of the images it was published for."""
    classes: int
    """Number of classes that it was published for."""
    parameters: int
    """Trainable numbers at that shape and number of classes."""


def names() -> list[str]:
    """Return the names of the shipped networks, in alphabetical order."""
    return sorted(_NETWORKS)


def catalog() -> list[CatalogRow]:
    """Return a row per shipped network, in alphabetical order. Allocates no parameters."""
    rows = []
    for name in names():
        network = _NETWORKS[name]
        with torch.device("meta"):
            module = network.build(network.input_shape, network.classes, 1.0)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        rows.append(
            CatalogRow(name, network.description, network.input_shape, network.classes, parameters)
        )
    return rows


def published(name: str) -> tuple[tuple[int, ...] | None, int | None]:
    """Return (input shape, classes) of a shipped network's source; Nones for a user's own.

    Raises:
        HetmpError: an unknown name.
    """
    if ":" in name:
        return None, None
    if name not in _NETWORKS:
        raise unknown_name("model", name, names())
    return _NETWORKS[name].input_shape, _NETWORKS[name].classes


def build(name: str, input_shape: Sequence[int], classes: int, *, width: float = 1.0) -> nn.Module:
    """Build the network *name* for images of *input_shape* and *classes* classes.

    Args:
        name: one of `names`, or ``package.module:function`` for a network of the user's own;
            the function is called with (input_shape, classes), a tuple of whole numbers and a
            whole number, and returns an ``nn.Module``. The current directory is searched for
            the module, as ``python -m`` does.
        input_shape: channels, then the spatial sides of one image in pixels. The shipped
            networks take (channels, height, width), ``hyperspectral`` (channels, bands,
            height, width).
        classes: length of the output, 1 or more.
        width: scales every hidden channel count of a shipped network (rounded, at least 1).

    The parameters start from torch's default generator, in its default dtype and on its
    default device. A shipped network takes ``(n, *input_shape)`` to (n, classes), but for
    ``unet``, which gives a class to every pixel: (n, classes, h, w).

    Raises:
        HetmpError: an unknown name, a shape, a class count or a width out of range, an image
            of a size that the network cannot take, a function that is missing or does not
            build a module.
    """
    classes = whole_number("classes", classes, 1)
    shape = image_shape("input_shape", input_shape)
    width = _width(width)

    if ":" in name:
        if width != 1:
            raise HetmpError(
                f"width {width} does not apply to {name}: it scales the shipped networks only "
                f"({', '.join(names())}); scale channels inside the function"
            )
        return user.build(name, shape, classes)
    if name not in _NETWORKS:
        raise unknown_name("model", name, names())
    network = _NETWORKS[name]
    if len(shape) - 1 != network.sides:
        raise HetmpError(
            f"{name} takes images with {network.sides} spatial sides, such as "
            f"{network.input_shape}, got input_shape {shape} with {len(shape) - 1} spatial side(s)"
        )
    return network.build(shape, classes, width)


def _width(width: Any) -> float:
    if isinstance(width, bool) or not isinstance(width, Real):
        raise HetmpError(f"width is a finite number above 0, got {width!r}")
    number = float(width)
    if not (number > 0 and math.isfinite(number)):
        raise HetmpError(f"width is a finite number above 0, got {width!r}")
    return number
