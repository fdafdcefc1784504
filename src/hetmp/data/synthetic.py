"""Images made from a seed, of any shape and number: for benchmarks, not for results.

An image is its class's prototype plus noise, so a network that works sees its loss fall.
Everything is made of the raw words of a counter-based generator by arithmetic that is exact or
correctly rounded, so the images are the same bits on every machine and with every numpy.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

from hetmp.data.checks import image_shape, whole
from hetmp.data.dataset import Dataset, Split

NAME = "synthetic"
SPLIT_NAME = "synthetic-5-1"
"""A test image for every five training images, from another stream of the generator."""

PROTOTYPE_SIDE = 4
"""A prototype is this many even patches along each spatial axis, so that pooling keeps it."""


class _Stream(IntEnum):
    PROTOTYPES = 0
    TRAIN = 1
    TEST = 2


def load(
    seed: int, shape: Sequence[int] | None, classes: int | None, samples: int | None
) -> Dataset:
    """*samples* training images and a fifth as many test images (at least one).

    Image i has label ``i % classes``, so the classes are even; its pixels are in [-2, 2) and
    depend on *seed*, *shape*, its label and i only, so a larger set begins with a smaller one.

    Args:
        seed: 0 or more.
        shape: (c, *spatial) of an image in pixels; (3, 32, 32) if None.
        classes: 2 or more; 10 if None.
        samples: 1 or more; 1000 if None.

    Raises:
        HetmpError: a value out of range.
    """
    shape = image_shape((3, 32, 32) if shape is None else shape)
    classes = whole("classes", 10 if classes is None else classes, 2)
    samples = whole("samples", 1000 if samples is None else samples, 1)
    prototypes = _prototypes(seed, classes, shape)  # (classes, c, *spatial)

    def split(count: int, stream: _Stream) -> Split:
        labels = np.arange(count, dtype=np.int64) % classes
        images = _uniform(seed, stream, (count, *shape))
        images += prototypes[labels]
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    return Dataset(
        name=NAME,
        train=split(samples, _Stream.TRAIN),
        test=split(max(1, samples // 5), _Stream.TEST),
        classes=classes,
        input_shape=shape,
        split_name=SPLIT_NAME,
        split_seed=seed,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
    )


def _prototypes(seed: int, classes: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    channels, *spatial = shape
    patches = tuple(min(PROTOTYPE_SIDE, side) for side in spatial)
    images = _uniform(seed, _Stream.PROTOTYPES, (classes, channels, *patches))
    for axis, (side, count) in enumerate(zip(spatial, patches, strict=True), start=2):
        images = images.take(np.arange(side) * count // side, axis=axis)
    return images


def _uniform(seed: int, stream: _Stream, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1), each a multiple of 2**-23, in the order of the generator's words."""
    size = int(np.prod(shape, dtype=np.int64))
    generator = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream,)))
    words = generator.random_raw((size + 1) // 2)  # 64 bits each: two numbers, low half first
    halves = words.astype("<u8").view("<u4")[:size]
    return ((halves >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)
