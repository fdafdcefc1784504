"""Metadata of a data set, read on rank 0 and broadcast: files, labels, mean and deviation."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hetmp.cluster import Group
from hetmp.core.checks import whole_number
from hetmp.core.errors import HetmpError
from hetmp.data.dataset import Dataset, Indices, Part, Split
from hetmp.data.options import Options
from hetmp.data.random_words import Purpose, words
from hetmp.data.records import RecordFile, Records

Found = dict[str, Any]
"""Arrays of numbers, and what JSON can hold, by name."""

MAX_BYTES = 2**30
"""The most bytes in one message."""


def read_once(group: Group | None, read: Callable[[], Found]) -> Found:
    """Call *read* on rank 0 and return its result on every rank. Collective with a *group*.

    Raises:
        HetmpError: on every rank, what *read* raised.
    """
    if group is None:
        return read()
    metadata: Found = {}
    with group.together():
        if group.is_root:
            metadata = read()
    arrays = {name: value for name, value in metadata.items() if isinstance(value, np.ndarray)}
    header = {
        "values": {name: value for name, value in metadata.items() if name not in arrays},
        "arrays": {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()},
    }
    header = json.loads(group.broadcast_text(json.dumps(header)))
    shared: Found = dict(header["values"])
    for name, (dtype, shape) in header["arrays"].items():
        array = np.ascontiguousarray(arrays[name]) if group.is_root else np.empty(shape, dtype)
        flat = array.reshape(-1).view(np.uint8)
        for begin in range(0, flat.size, MAX_BYTES):
            group.broadcast(flat[begin : begin + MAX_BYTES])
        shared[name] = array.reshape(shape)
    return shared


MOST_CLASSES = 2**16
"""The most classes that labels may imply; for more, ``classes`` must be set."""


def class_count(options: Options, labels: npt.NDArray[np.generic], where: str) -> int:
    """Return the number of classes: that of the options, else as the training *labels* need.

    Args:
        labels: of any type of whole numbers.
        where: the source of the labels, for the message.

    Raises:
        HetmpError: they are fewer than 2, or not set and more than ``MOST_CLASSES``.
    """
    if options.classes is not None:
        return whole_number("classes", options.classes, 2)
    most = int(labels.max())
    if most >= MOST_CLASSES:
        raise HetmpError(
            f"{where}: label {most} needs {most + 1} classes: number the classes from 0 up "
            "without gaps, or set classes to their number"
        )
    if most < 1:
        raise HetmpError(f"{where}: every label is 0: there must be at least two classes")
    return most + 1


def with_moments(options: Options, metadata: Found) -> Found:
    """Add the mean and deviation that normalise the images to *metadata*.

    Called on rank 0, so that the other ranks need not read images for them.

    Raises:
        HetmpError: the options give another number of channels; an image cannot be read.
    """
    mean, std = set_or_measured(options, _part(metadata, "train"))
    return {**metadata, "mean": list(mean), "std": list(std)}


def assembled(name: str, metadata: Found) -> Dataset:
    """Return the data set that `with_moments` describes, on any rank.

    Raises:
        HetmpError: a file that rank 0 has read cannot be opened here.
    """
    return Dataset(
        name=name,
        train=_part(metadata, "train"),
        test=_part(metadata, "test"),
        classes=metadata["classes"],
        input_shape=tuple(metadata["shape"]),
        split_name=metadata["split_name"],
        split_seed=metadata.get("split_seed", 0),
        mean=tuple(metadata["mean"]),
        std=tuple(metadata["std"]),
        class_names=tuple(metadata.get("class_names", ())),
    )


def _part(metadata: Found, part: str) -> Part:
    labels = metadata[f"{part}_labels"].astype(np.int64)
    if f"{part}_files" in metadata:
        files = [RecordFile(*file) for file in metadata[f"{part}_files"]]
        return Records(files, tuple(metadata["shape"]), labels)
    return Split(torch.from_numpy(metadata[f"{part}_images"]), torch.from_numpy(labels))


SAMPLE = 2000
"""The most training images that mean and deviation are computed from."""

_BLOCK = 500
"""Images summed at a time."""


def moments(images: npt.NDArray[np.generic]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, deviation) of each channel of *images* (n, c, *spatial), uint8 or float32.

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
    """Return the training images to look at, of *count*: all, or ``SAMPLE`` spread at random."""
    if count <= SAMPLE:
        return np.arange(count)
    keys = words(0, Purpose.SPLIT, 2**32 + count, count)
    return np.sort(np.argsort(keys, kind="stable")[:SAMPLE])


def set_or_measured(options: Options, train: Part) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, deviation) of *options*, else of (a sample of) the training images.

    Raises:
        HetmpError: they are set for another number of channels.
    """
    if options.mean is None or options.std is None:
        return moments(train.read(sample(len(train)))[0])
    for name, figures in (("mean", options.mean), ("std", options.std)):
        if len(figures) != train.shape[0]:
            raise HetmpError(
                f"{name} has {len(figures)} numbers, the images have {train.shape[0]} channels: "
                "give one for each"
            )
    return options.mean, options.std
