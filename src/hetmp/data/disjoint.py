"""Training and test pixels of one scene, so far apart that their patches do not overlap."""

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.data.dataset import Indices
from hetmp.data.random_words import Purpose, words

ATTEMPTS = 100
"""Divisions of a scene to try until every class is in both parts."""

_STREAM = 2**33  # of the generator: beyond those of the classes and of the samples


def split_apart(
    pixels: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    sides: tuple[int, int],
    patch: int,
    test_share: float,
    seed: int,
) -> tuple[Indices, Indices]:
    """Return (training, test): indices into *pixels*, ascending; every class is in both.

    The scene is divided into squares of twice the patch's side. Squares are drawn for training
    until they hold enough of each class, the rarest first, and one with each class is left. All
    other pixels are for testing, but for those whose patch meets a training pixel's patch: they
    are in neither part. (Test pixels, because there are far more of them.) Depends on the
    arguments only.

    Args:
        pixels: (n, 2), row and column.
        labels: (n,), 0 or more.
        sides: height and width of the scene.
        patch: side of a patch; at the borders it is mirrored, which adds no further pixels.
        test_share: about how large a share is not for training.
        seed: of the draw.

    Raises:
        HetmpError: no division has every class in both parts; names a missing one.
    """
    kinds = np.unique(labels)
    missing = 0
    for attempt in range(ATTEMPTS):
        chosen = _drawn(pixels, labels, sides, patch, test_share, (seed, attempt))
        apart = ~chosen & ~_near(pixels[chosen], sides, patch - 1)[tuple(pixels.T)]
        lacking = np.setdiff1d(kinds, labels[apart])
        lacking = np.union1d(lacking, np.setdiff1d(kinds, labels[chosen]))
        if not len(lacking):
            return np.flatnonzero(chosen), np.flatnonzero(apart)
        missing = int(lacking[0])
    count = int((labels == missing).sum())
    raise HetmpError(
        f"disjoint: class {missing + 1}, with {count} labelled pixels, cannot be in both parts: "
        f"they lie so close together that patches of {patch} x {patch} around any two overlap, or "
        "nearly so. Choose a smaller patch, another split_seed, or no disjoint parts"
    )


def _drawn(
    pixels: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    sides: tuple[int, int],
    patch: int,
    test_share: float,
    stream: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """Draw squares for training; return which pixels lie in them."""
    side = 2 * patch
    across = sides[1] // side + 2  # squares in a row, with those that the grid's offset adds
    down = sides[0] // side + 2
    seed, attempt = stream
    drawn = words(seed, Purpose.SPLIT, _STREAM + attempt, 2 + down * across)
    offset = (drawn[:2] % np.uint64(side)).astype(np.int64)
    row, column = ((pixels + offset) // side).T
    square = row * across + column
    rank = np.argsort(np.argsort(drawn[2:], kind="stable"), kind="stable")
    chosen = np.zeros(len(pixels), dtype=bool)
    reserved = np.zeros(len(rank), dtype=bool)  # squares reserved for testing
    kinds, counts = np.unique(labels, return_counts=True)
    for kind in kinds[np.argsort(counts, kind="stable")]:
        of_kind = labels == kind
        wanted = (1 - test_share) * of_kind.sum()
        squares = np.unique(square[of_kind & ~chosen])
        squares = squares[np.argsort(rank[squares])]
        if len(squares) and not reserved[squares].any():
            reserved[squares[-1]] = True
        for number in squares[~reserved[squares]]:
            if (of_kind & chosen).sum() >= wanted:
                break
            chosen |= square == number
    return chosen


def _near(
    centres: npt.NDArray[np.int64], sides: tuple[int, int], distance: int
) -> npt.NDArray[np.bool_]:
    """Return (h, w): whether a centre is at most *distance* rows and columns away."""
    near = np.zeros(sides, dtype=bool)
    near[tuple(centres.T)] = True
    for axis, side in enumerate(sides):
        # Sums over windows, from sums from the beginning on.
        sums = np.insert(near.cumsum(axis, dtype=np.int64), 0, 0, axis)
        at = np.arange(side)
        ends, begins = np.minimum(at + distance + 1, side), np.maximum(at - distance, 0)
        near = sums.take(ends, axis) > sums.take(begins, axis)
    return near
