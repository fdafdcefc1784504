"""Checks images and labels that come as arrays, and brings them into hetmp's order of axes."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError


def checked_labels(
    where: str, labels: npt.NDArray[Any], classes: int | None = None
) -> npt.NDArray[np.int64]:
    """Return *labels* as int64, each 0 or more and, with *classes*, below it.

    Args:
        where: the source of the labels, for the message.

    Raises:
        HetmpError: not integers, none at all, or one out of range; names it and its place.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise HetmpError(f"{where}: labels are whole numbers, these are {labels.dtype}")
    if labels.size == 0:
        raise HetmpError(f"{where}: there are no labels")
    wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if wrong.any():
        at = np.unravel_index(int(np.argmax(wrong)), labels.shape)
        limit = "0 or more" if classes is None else f"0 to {classes - 1}"
        place = ", ".join(str(int(i)) for i in at)
        raise HetmpError(
            f"{where}: label {int(labels[at])} of image {place} is out of range, {limit}"
            if labels.ndim == 1
            else f"{where}: label {int(labels[at])} at ({place}) is out of range, {limit}"
        )
    return labels.astype(np.int64)


Channels = Literal["none", "first", "last"]
"""Images without an axis for them (grey), with theirs as the first, or as the last."""

USUAL = (1, 3, 4)
"""Usual numbers of channels: grey, colours, colours and opacity."""


def find_channels(
    where: str, sides: tuple[int, ...], wanted: tuple[int, ...] | None
) -> tuple[Channels, tuple[int, ...]]:
    """Return (where the channels are, the shape with the channels first) of one image.

    Args:
        where: name of the images, for the message.
        sides: of one image as it is stored.
        wanted: the shape that it shall have; None: derive it.

    Raises:
        HetmpError: *wanted* is another shape; not enough axes for an image; a side of 0.
    """
    if not all(sides) or len(sides) < 2:
        raise HetmpError(
            f"{where}: each image must have two or more sides, none of them 0; these have {sides}"
        )
    ways: dict[Channels, tuple[int, ...]] = {"first": sides, "last": (sides[-1], *sides[:-1])}
    ways["none"] = (1, *sides)
    if wanted is not None:
        for channels, shape in ways.items():
            if shape == tuple(wanted):
                return channels, shape
        raise HetmpError(
            f"{where}: each image is {sides}, which is not the given shape {tuple(wanted)} with "
            "its channels first, last or left out"
        )
    if len(sides) == 2:
        return "none", ways["none"]
    last = len(sides) == 3 and sides[-1] in USUAL and sides[0] not in USUAL
    return ("last", ways["last"]) if last else ("first", sides)


def channels_first(images: npt.NDArray[np.generic], channels: Channels) -> npt.NDArray[np.generic]:
    """Return *images* (n, ...) as (n, c, *spatial)."""
    if channels == "none":
        return images[:, None]
    return np.moveaxis(images, -1, 1) if channels == "last" else images


_BLOCK = 500
"""Images checked at a time."""

Array = npt.NDArray[np.generic]


def ordered_images(where: str, images: Array, shape: tuple[int, ...] | None = None) -> Array:
    """Return *images* as (n, c, *spatial), uint8 or float32, contiguous.

    With *shape*, (c, *spatial), it decides which axis is the channels; where both ends would do,
    they come first. Else images of three axes have one channel. Of four axes the last is the
    channels if it has a length of 1, 3 or 4 and the one after n has not; in any other case they
    come first.

    Args:
        where: what holds the images, for the message.
        images: bytes, floating numbers, or whole numbers from 0 to 255.

    Raises:
        HetmpError: another type, no images, not of *shape*, or a value that is not finite.
    """
    if 0 in images.shape:
        raise HetmpError(f"{where}: there are no images in an array of shape {images.shape}")
    channels, _ = find_channels(where, images.shape[1:], shape)
    return np.ascontiguousarray(channels_first(_numbers(where, images), channels))


def ordered_labels(where: str, labels: Array, images: Array) -> Array:
    """Return *labels* as (n,), or (n, *spatial) per pixel, for *images* (n, c, *spatial).

    Args:
        where: names the labels in the message.
        labels: (n,), (n, 1) or (n, *spatial), of any dtype.

    Raises:
        HetmpError: another shape; labels as rows of 0 and 1.
    """
    count, _, *spatial = images.shape
    if labels.ndim == 2 and labels.shape[1] == 1 and spatial != [1]:
        labels = labels[:, 0]
    if labels.ndim and len(labels) != count:
        raise HetmpError(f"{where}: {len(labels)} labels for {count} images: give one for each")
    if labels.shape in ((count,), (count, *spatial)):
        return labels
    one_hot = labels.ndim == 2 and bool(
        np.isin(labels, (0, 1)).all() and ((labels == 1).sum(axis=1) == 1).all()
    )
    raise HetmpError(
        f"{where}: labels of shape {labels.shape} are one-hot: save labels.argmax(axis=1) instead"
        if one_hot
        else f"{where}: labels have shape {labels.shape}: give one for each image ({count},), or "
        f"one for each pixel {(count, *spatial)}"
    )


def _numbers(where: str, images: Array) -> Array:
    if images.dtype in (np.dtype(np.uint8), np.dtype(np.bool_)):
        return images.astype(np.uint8, copy=False)
    if np.issubdtype(images.dtype, np.integer):
        least, most = int(images.min()), int(images.max())
        if least < 0 or most > 255:
            raise HetmpError(
                f"{where}: images of {images.dtype} go from {least} to {most}: whole numbers are "
                "read from 0 to 255; save others as float32"
            )
        return images.astype(np.uint8)
    if not np.issubdtype(images.dtype, np.floating):
        raise HetmpError(f"{where}: images of type {images.dtype}: save them as uint8 or float32")
    with np.errstate(over="ignore"):  # it becomes infinite, which is refused with its place
        numbers = images.astype(np.float32, copy=False)
    for begin in range(0, len(numbers), _BLOCK):
        block = numbers[begin : begin + _BLOCK]
        wrong = ~np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if wrong.any():
            raise HetmpError(
                f"{where}: image {begin + int(np.argmax(wrong))} has a number that is not finite "
                "in float32: correct or leave out such images"
            )
    return numbers
