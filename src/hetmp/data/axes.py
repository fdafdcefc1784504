"""Where an array of images has its channels."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from hetmp.errors import HetmpError

Channels = Literal["none", "first", "last"]
"""Images without an axis for them (grey), with theirs as the first, or as the last."""

USUAL = (1, 3, 4)
"""As many channels as pictures have: grey, colours, colours and opacity."""


def find_channels(
    where: str, sides: tuple[int, ...], told: tuple[int, ...] | None
) -> tuple[Channels, tuple[int, ...]]:
    """(where its channels are, its shape with the channels first) of one image.

    Args:
        where: what the images are called, for the message.
        sides: of one image as it is stored.
        told: the shape that it is to have, if that is said.

    Raises:
        HetmpError: *told* is another shape; not enough axes for an image; a side of 0.
    """
    if not all(sides) or len(sides) < 2:
        raise HetmpError(
            f"{where}: images have two sides or more, none of them 0, besides the axis that counts "
            f"them; these are {sides}"
        )
    ways: dict[Channels, tuple[int, ...]] = {"first": sides, "last": (sides[-1], *sides[:-1])}
    ways["none"] = (1, *sides)
    if told is not None:
        for channels, shape in ways.items():
            if shape == tuple(told):
                return channels, shape
        raise HetmpError(
            f"{where}: each image is {sides}, which is not the shape {tuple(told)} that was told, "
            "with its channels first, last or left out"
        )
    if len(sides) == 2:
        return "none", ways["none"]
    last = len(sides) == 3 and sides[-1] in USUAL and sides[0] not in USUAL
    return ("last", ways["last"]) if last else ("first", sides)


def channels_first(images: npt.NDArray[np.generic], channels: Channels) -> npt.NDArray[np.generic]:
    """*images* (n, ...) as (n, c, *spatial)."""
    if channels == "none":
        return images[:, None]
    return np.moveaxis(images, -1, 1) if channels == "last" else images
