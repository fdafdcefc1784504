"""Which images are test images, where the data does not say."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hetmp.data.dataset import Indices
from hetmp.data.generator import Purpose, words
from hetmp.errors import HetmpError

TEST_SHARE = 0.2
"""Of the images of every class, if not told otherwise."""


def split_by_class(
    labels: npt.NDArray[np.int64], test_share: float, seed: int, called: Callable[[int], str]
) -> tuple[Indices, Indices]:
    """(training, test): indices into *labels*, ascending; every class is in both.

    Of each class the same share is for testing, to the nearest image. Which ones depends on
    *seed*, the class and its number of images only: the same on any machine, with any numpy.

    Args:
        labels: (n,), 0 or more.
        test_share: above 0 and below 1.
        called: what a person knows a class by.

    Raises:
        HetmpError: a class has one image, which cannot be in both parts.
    """
    test = np.zeros(len(labels), dtype=bool)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < 2:
            raise HetmpError(
                f"{called(int(label))} is there once only: it takes two to have one for training "
                "and one for testing; add one, or leave the class out"
            )
        wanted = min(max(round(test_share * int(count)), 1), int(count) - 1)
        keys = words(seed, Purpose.SPLIT, int(label), int(count))
        test[np.flatnonzero(labels == label)[np.argsort(keys, kind="stable")[:wanted]]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)
