"""Mean and deviation of images, by channel: what they are normalised with."""

import math

import numpy as np
import numpy.typing as npt

from hetmp.data.dataset import Indices, Part
from hetmp.data.generator import Purpose, words
from hetmp.data.options import Options
from hetmp.errors import HetmpError

SAMPLE = 2000
"""How many training images the figures are taken from, where all would take long to read."""

_BLOCK = 500
"""How many images are looked at at a time."""


def moments(images: npt.NDArray[np.generic]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) of each channel of *images* (n, c, *spatial), uint8 or float32.

    Of uint8 the sums are exact, so that unlike machines get the same bits. A channel that is
    the same everywhere has deviation 1: there is nothing to divide by.
    """
    channels = images.shape[1]
    count = images.size // channels if channels else 0
    exact = images.dtype == np.uint8
    totals: list[float] = [0] * channels
    squares: list[float] = [0] * channels
    for begin in range(0, len(images), _BLOCK):
        block = images[begin : begin + _BLOCK].astype(np.int64 if exact else np.float64)
        for channel in range(channels):
            totals[channel] += block[:, channel].sum().item()
            squares[channel] += (block[:, channel] ** 2).sum().item()
    mean = tuple(total / count for total in totals)
    spread = (
        math.sqrt(max(0.0, count * square - total**2)) / count
        for total, square in zip(totals, squares, strict=True)
    )
    return mean, tuple(std if std > 0 else 1.0 for std in spread)


def sample(count: int) -> Indices:
    """Which of *count* training images are looked at: all, or ``SAMPLE`` spread at random."""
    if count <= SAMPLE:
        return np.arange(count)
    keys = words(0, Purpose.SPLIT, 2**32 + count, count)
    return np.sort(np.argsort(keys, kind="stable")[:SAMPLE])


def told_or_measured(options: Options, train: Part) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, deviation) as *options* say, else of (a sample of) the training images.

    Raises:
        HetmpError: told for another number of channels.
    """
    if options.mean is None or options.std is None:
        return moments(train.read(sample(len(train)))[0])
    for name, told in (("mean", options.mean), ("std", options.std)):
        if len(told) != train.shape[0]:
            raise HetmpError(
                f"{name} has {len(told)} numbers, the images have {train.shape[0]} channels: give "
                "one for each"
            )
    return options.mean, options.std
