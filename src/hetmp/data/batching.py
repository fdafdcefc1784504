"""Which images make up which batch: a function of seed and epoch alone."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.core.checks import whole_number
from hetmp.core.errors import HetmpError
from hetmp.data.dataset import Split
from hetmp.data.random_words import Purpose, words


def count_batches(n: int, batch_size: int, drop_last: bool = False) -> int:
    """Count the batches of *batch_size* images that *n* images make.

    Without *drop_last* the last batch holds what is left, and may be smaller.

    Raises:
        HetmpError: *n* or *batch_size* is not a whole number above 0, or *drop_last* would
            leave no batch.

    >>> count_batches(10, 4), count_batches(10, 4, drop_last=True)
    (3, 2)
    """
    n = whole_number("n, the number of images,", n, 1)
    batch_size = whole_number("batch_size", batch_size, 1)
    full, rest = divmod(n, batch_size)
    if not drop_last:
        return full + (rest > 0)
    if full == 0:
        raise HetmpError(
            f"batch_size {batch_size} with drop_last leaves no batch of {n} images: "
            f"choose a batch_size of {n} or less, or keep the last batch"
        )
    return full


def batch_indices(
    n: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
) -> list[npt.NDArray[np.int64]]:
    """Return the indices, 0 to n - 1, of each batch of an epoch, in order.

    Every index comes once, but for those that *drop_last* drops. The order depends on *n*,
    *seed* and *epoch* only: it is the same on every rank, on every machine, with any numpy.

    Args:
        n: the number of images.
        batch_size: images of a batch; the last one may have fewer.
        seed: of the order.
        epoch: its number, from 0.
        shuffle: whether the order is random; else it is ascending.
        drop_last: leave out a last batch that is not full.

    Raises:
        HetmpError: as `count_batches`; *seed* or *epoch* is not a whole number, 0 or more.
    """
    count = count_batches(n, batch_size, drop_last)
    n, batch_size = int(n), int(batch_size)  # a numpy int8 would overflow in the products below
    seed, epoch = whole_number("seed", seed, 0), whole_number("epoch", epoch, 0)
    order = _shuffled(n, seed, epoch) if shuffle else np.arange(n, dtype=np.int64)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(count)]


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    shuffle: bool = True,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of an epoch: images ``(b, c, *spatial)`` float32, labels int64.

    *start* is the first batch to yield, counted from 0, for a run that resumes: those before
    it are not read. At the number of batches nothing is yielded: the epoch was complete.

    Args:
        split: the part of a data set to read.
        batch_size: images of a batch; the last one may have fewer.
        seed, epoch: what the order depends on, see `batch_indices`.
        drop_last: leave out a last batch that is not full.
        shuffle: whether the order is random; else it is ascending.

    Raises:
        HetmpError: at the call, before any batch: as `batch_indices`; *start* is no batch of
            this epoch.
    """
    indices = batch_indices(
        len(split), batch_size, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last
    )
    start = whole_number(f"start, a batch of the epoch's {len(indices)},", start, 0, len(indices))
    return (_take(split, chosen) for chosen in indices[start:])


def _take(split: Split, chosen: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    at = torch.from_numpy(chosen)
    return split.images[at], split.labels[at]


def _shuffled(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # Equal words (chance n**2 / 2**65) stay in order, so the result is defined even then.
    keys = words(seed, Purpose.BATCH_ORDER, epoch, n)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
