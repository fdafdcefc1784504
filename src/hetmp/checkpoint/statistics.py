"""Figures of a checkpoint's tensors, read a block at a time: no torch, no MPI."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetmp.checkpoint.catalog import BLOCK_BYTES, Catalog, Stored
from hetmp.checkpoint.values import TEXT

BINS = 20
"""Bins of a histogram."""


@dataclass(frozen=True)
class Figures:
    """Statistics of a tensor's numbers; those that are not finite are only counted.

    Attributes:
        numbers: how many there are.
        not_finite: how many of them are NaN or infinite.
        zeros: how many are 0.
        least, most, mean, deviation: of the finite ones; NaN where there are none.
        norm: the root of the sum of their squares.
    """

    numbers: int
    not_finite: int
    zeros: int
    least: float
    most: float
    mean: float
    deviation: float
    norm: float


@dataclass(frozen=True)
class Difference:
    """The difference between two checkpoints' datasets of one name.

    Attributes:
        path: of the dataset.
        relative: the norm of the difference over the norm of the second; 0 for the same numbers.
        largest: the largest difference of two numbers.
        why: what makes them incomparable; empty where they can be compared.
    """

    path: str
    relative: float
    largest: float
    why: str = ""


def values(catalog: Catalog, stored: Stored) -> Iterator[npt.NDArray[np.float64]]:
    """Yield a dataset's numbers as float64, block by block; absolute values of complex ones."""
    if stored.dtype == TEXT:
        return
    shape = stored.shape
    if shape.chunks is None:
        yield _as_float(catalog.read(stored), stored.dtype)
        return
    for first, last in shape.blocks(BLOCK_BYTES):
        yield _as_float(catalog.block(stored, first, last), stored.dtype)


def figures(catalog: Catalog, stored: Stored) -> Figures:
    """Compute the statistics of a dataset of numbers."""
    count = broken = zeros = 0
    least, most, total, squares = np.inf, -np.inf, 0.0, 0.0
    for block in values(catalog, stored):
        finite = block[np.isfinite(block)]
        count, broken = count + block.size, broken + block.size - finite.size
        if finite.size:
            zeros += int((finite == 0).sum())
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
            total += float(finite.sum())
            squares += float(np.square(finite).sum())
    usable = count - broken
    mean = total / usable if usable else np.nan
    return Figures(
        count,
        broken,
        zeros,
        least if usable else np.nan,
        most if usable else np.nan,
        mean,
        float(np.sqrt(max(0.0, squares / usable - mean**2))) if usable else np.nan,
        float(np.sqrt(squares)),
    )


def histogram(
    catalog: Catalog, stored: Stored, stats: Figures
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Count the finite numbers of a dataset in *BINS* bins of equal width.

    Args:
        catalog: the open file.
        stored: the dataset, read in blocks of rows.
        stats: its figures, of which the least and the largest number bound the bins.

    Returns:
        The counts, (*BINS*,), and the edges between the bins, (*BINS* + 1,).
    """
    least, most = (stats.least, stats.most) if stats.numbers > stats.not_finite else (0.0, 1.0)
    edges = np.linspace(least, most if most > least else least + 1, BINS + 1)
    counts = np.zeros(BINS, dtype=np.int64)
    for block in values(catalog, stored):
        counts += np.histogram(block[np.isfinite(block)], edges)[0]
    return counts, edges


def difference(first: Catalog, second: Catalog, path: str) -> Difference:
    """Measure how far a dataset of *path* is from the other file's.

    Args:
        first, second: the files; differences are relative to the second's numbers.
        path: of the dataset in both.
    """
    mine, theirs = first.stored.get(path), second.stored.get(path)
    if mine is None or theirs is None:
        missing = first if mine is None else second
        return Difference(path, np.inf, np.inf, f"not in {missing.file.filename}")
    if (mine.sizes, mine.dtype) != (theirs.sizes, theirs.dtype):
        return Difference(
            path, np.inf, np.inf, f"{_shape_text(mine)} against {_shape_text(theirs)}"
        )
    if mine.digest == theirs.digest:
        return Difference(path, 0.0, 0.0)
    if mine.dtype == TEXT:
        return Difference(path, np.inf, np.inf, "another text")
    squares = reference = largest = 0.0
    for a, b in zip(values(first, mine), values(second, theirs), strict=True):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
        squares += float(np.square(apart).sum())
        reference += float(np.square(b).sum())
        largest = max(largest, float(np.abs(apart).max(initial=0.0)))
    relative = float(np.sqrt(squares) / np.sqrt(reference)) if reference > 0 else np.inf
    return Difference(path, relative, largest)


def _shape_text(stored: Stored) -> str:
    return f"{'×'.join(map(str, stored.sizes)) or 'a number'} {stored.dtype}"


def _as_float(array: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float64]:
    flat = np.asarray(array).reshape(-1)
    if dtype == "bfloat16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if flat.dtype.kind == "c":
        flat = np.abs(flat)
    return flat.astype(np.float64)
