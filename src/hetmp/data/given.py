"""Data whose files say themselves which images are for testing, and data whose files do not."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hetmp.data.dataset import Indices
from hetmp.data.once import Found
from hetmp.data.options import Options
from hetmp.data.splitting import TEST_SHARE, split_by_class
from hetmp.errors import HetmpError


def refuse_split(options: Options, where: object) -> None:
    """Refuse settings of a split where the data has parts of its own.

    Raises:
        HetmpError: ``test_share`` or ``split_seed`` is told.
    """
    for name, told in (("test_share", options.test_share), ("split_seed", options.split_seed)):
        if told:
            raise HetmpError(
                f"{name}={told} does not apply: {where} has a test part of its own; leave it out"
            )


def drawn(
    options: Options,
    labels: npt.NDArray[np.int64],
    called: Callable[[int], str],
    usual: float = TEST_SHARE,
) -> tuple[Indices, Indices, float, int]:
    """(training, test, share, seed): a part of each class for testing, by ``split_by_class``.

    Args:
        labels: (n,), 0 or more.
        called: what a person knows a class by.
        usual: the share for testing, where none is told.

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
    """(training, test, how it was done): of each class, or of all where pixels have the classes.

    Args:
        name: of the data set.
        labels: (n,), 0 or more; None where each pixel has a label.
        count: how many images there are.

    Raises:
        HetmpError: as ``drawn``.
    """
    if labels is None:
        way, told = "random", drawn(options, np.zeros(count, np.int64), lambda _: "an image")
    else:
        way, told = "by-class", drawn(options, labels, lambda kind: f"an image of class {kind}")
    train, test, share, seed = told
    return train, test, {"split_name": f"{name}-{way}-{share!r}", "split_seed": seed}
