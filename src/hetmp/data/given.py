"""Data whose files say themselves which images are for testing, and data whose files do not."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hetmp.data.dataset import Indices
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
    found, counts = np.unique(labels, return_counts=True)
    if (counts == 1).any():
        which = called(int(found[np.argmax(counts == 1)]))
        raise HetmpError(
            f"{which} is there once only: it takes two to have one for training and one for "
            "testing; add one, or leave the class out"
        )
    train, test = split_by_class(labels, share, seed)
    return train, test, share, seed
