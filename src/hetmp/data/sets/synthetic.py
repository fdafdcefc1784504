"""Images made from a seed, of any shape and number: for benchmarks, not for results.

An image is its class's prototype plus noise, so a network that works sees its loss fall.
Everything is made of the words of a counter-based generator by arithmetic that is exact or
correctly rounded, so the images are the same bits on every machine.
"""

import numpy as np
import numpy.typing as npt
import torch

from hetmp.core.checks import image_shape, whole_number
from hetmp.data.dataset import Dataset, Split
from hetmp.data.options import Options
from hetmp.data.random_words import Purpose, words
from hetmp.data.survey import Found

NAME = "synthetic"
OPTIONS = ("shape", "classes", "samples")
SPLIT_NAME = "synthetic-5-1"
"""A test image for every five training images, from another stream of the generator."""

PROTOTYPE_SIDE = 4
"""Even patches of a prototype along each spatial axis: coarse, so that pooling keeps them."""


def survey(options: Options) -> Found:
    """Return nothing: every rank makes the images."""
    return {}


def assemble(options: Options, metadata: Found) -> Dataset:
    """Make ``samples`` training images (1000) and a fifth as many test images (at least one).

    Image i has label ``i % classes`` (10 classes by default), so the classes are even; its
    pixels are in [-2, 2) and depend on the seed, the shape (default (3, 32, 32)), its label and
    i only, so a larger set begins with a smaller one.

    Raises:
        HetmpError: a value out of range.
    """
    seed, shape = options.seed, options.shape
    classes, samples = options.classes, options.samples
    shape = image_shape("shape", (3, 32, 32) if shape is None else shape)
    classes = whole_number("classes", 10 if classes is None else classes, 2)
    samples = whole_number("samples", 1000 if samples is None else samples, 1)
    prototypes = _prototypes(seed, classes, shape)  # (classes, c, *spatial)

    def split(count: int, noise: Purpose) -> Split:
        labels = np.arange(count, dtype=np.int64) % classes
        images = _uniform(seed, noise, (count, *shape))
        images += prototypes[labels]
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    return Dataset(
        name=NAME,
        train=split(samples, Purpose.TRAIN_NOISE),
        test=split(max(1, samples // 5), Purpose.TEST_NOISE),
        classes=classes,
        input_shape=shape,
        split_name=SPLIT_NAME,
        split_seed=seed,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
        normalised=True,
    )


def _prototypes(seed: int, classes: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    channels, *spatial = shape
    patches = tuple(min(PROTOTYPE_SIDE, side) for side in spatial)
    images = _uniform(seed, Purpose.PROTOTYPES, (classes, channels, *patches))
    for axis, (side, count) in enumerate(zip(spatial, patches, strict=True), start=2):
        images = images.take(np.arange(side) * count // side, axis=axis)
    return images


def _uniform(seed: int, purpose: Purpose, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return numbers in [-1, 1), each a multiple of 2**-23, so that none of them was rounded."""
    size = int(np.prod(shape, dtype=np.int64))
    pairs = words(seed, purpose, 0, (size + 1) // 2)
    halves = pairs.astype("<u8", copy=False).view("<u4")[:size]  # the low half comes first
    numbers = (halves >> 8).astype(np.float32)
    numbers *= np.float32(2**-23)
    numbers -= np.float32(1)
    return numbers.reshape(shape)
