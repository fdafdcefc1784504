"""Decide which images are for training and which for testing."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.data.dataset import Indices
from hetmp.data.options import Options
from hetmp.data.random_words import Purpose, words
from hetmp.data.survey import Found

TEST_SHARE = 0.2
"""Default share of every class for testing."""


def split_by_class(
    labels: npt.NDArray[np.int64], test_share: float, seed: int, called: Callable[[int], str]
) -> tuple[Indices, Indices]:
    """Return (training, test): indices into *labels*, ascending; every class is in both.

    Of each class the same share is for testing, to the nearest image. Which ones depends on
    *seed*, the class and its number of images only: the same on any machine, with any numpy.

    Args:
        labels: (n,), 0 or more.
        test_share: above 0 and below 1.
        called: names an image of a class, for the message.

    Raises:
        HetmpError: a class has one image, which cannot be in both parts.
    """
    test = np.zeros(len(labels), dtype=bool)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < 2:
            raise HetmpError(
                f"{called(int(label))} occurs only once, but two are needed, one for training "
                "and one for testing: add one, or leave out the class"
            )
        wanted = min(max(round(test_share * int(count)), 1), int(count) - 1)
        keys = words(seed, Purpose.SPLIT, int(label), int(count))
        test[np.flatnonzero(labels == label)[np.argsort(keys, kind="stable")[:wanted]]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def refuse_split(options: Options, where: object) -> None:
    """Refuse settings of a split where the data has parts of its own.

    Raises:
        HetmpError: ``test_share`` or ``split_seed`` is set.
    """
    for name, value in (("test_share", options.test_share), ("split_seed", options.split_seed)):
        if value:
            raise HetmpError(
                f"{name}={value} does not apply: {where} has a test part of its own; leave it out"
            )


def drawn(
    options: Options,
    labels: npt.NDArray[np.int64],
    called: Callable[[int], str],
    usual: float = TEST_SHARE,
) -> tuple[Indices, Indices, float, int]:
    """Return (training, test, share, seed): a share of each class for testing.

    Args:
        options: of the data set; they may set the share and the seed.
        labels: (n,), 0 or more.
        called: names an image of a class, for the message.
        usual: the share for testing, where none is set.

    Raises:
        HetmpError: a class has one image, which cannot be in both parts.
    """
    share = options.test_share or usual
    seed = options.split_seed or 0
    train, test = split_by_class(labels, share, seed, called)
    return train, test, share, seed


def divided(
    options: Options, name: str, labels: npt.NDArray[np.int64] | None, count: int
) -> tuple[Indices, Indices, Found]:
    """Return (training, test, how it was done): of each class, or of all if pixels have them.

    Args:
        options: of the data set; see ``drawn``.
        name: of the data set.
        labels: (n,), 0 or more; None where each pixel has a label.
        count: how many images there are.

    Raises:
        HetmpError: as ``drawn``.
    """
    if labels is None:
        way, division = "random", drawn(options, np.zeros(count, np.int64), lambda _: "an image")
    else:
        way, division = "by-class", drawn(options, labels, lambda kind: f"an image of class {kind}")
    train, test, share, seed = division
    return train, test, {"split_name": f"{name}-{way}-{share!r}", "split_seed": seed}
