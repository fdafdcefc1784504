"""Which of a rank's numbers lie in a run of a whole tensor's rows: pure arithmetic, no MPI.

A tensor cut along one axis is seen as a matrix: the axes before the cut are its rows, the cut
axis and those behind it its columns. A rank's share is a matrix of as many rows and fewer columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetmp.core.partition import Layout

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Region:
    """A rectangle of a rank's matrix, and where it lies in a run of the whole tensor.

    Attributes:
        rows, columns: of the rank's matrix.
        begin: the first number of the rectangle's rows in the run.
        width: numbers of the run in each of these rows.
        offset: where in each row the rectangle begins.
    """

    rows: slice
    columns: slice
    begin: int
    width: int
    offset: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def of_run(self, run: Array) -> Array:
        """Return the rectangle's view of the run's numbers, (rows, columns)."""
        rows = self.rows.stop - self.rows.start
        whole = run[self.begin : self.begin + rows * self.width].reshape(rows, self.width)
        return whole[:, self.offset : self.offset + self.columns.stop - self.columns.start]


@dataclass(frozen=True)
class Cut:
    """How a tensor of *sizes* is cut along *axis*."""

    sizes: tuple[int, ...]
    axis: int
    layout: Layout

    @property
    def inner(self) -> int:
        """Numbers that one index of the cut axis selects."""
        return math.prod(self.sizes[self.axis + 1 :])

    def matrix(self, local: Array, rank: int) -> Array:
        """Return a rank's share as a matrix."""
        return local.reshape(
            math.prod(self.sizes[: self.axis]), self.layout.counts[rank] * self.inner
        )

    def regions(self, rank: int, first: int, last: int) -> list[Region]:
        """Return the regions of *rank* within the numbers from *first* up to *last*, in order."""
        width = self.sizes[self.axis] * self.inner
        regions, begin = [], 0
        for rows, low, high in _rectangles(first, last, width):
            held = 0
            for piece in self.layout.slices(rank):
                start, stop = piece.start * self.inner, piece.stop * self.inner
                left, right = max(low, start), min(high, stop)
                if left < right:
                    columns = slice(held + left - start, held + right - start)
                    regions.append(Region(rows, columns, begin, high - low, left - low))
                held += stop - start
            begin += (rows.stop - rows.start) * (high - low)
        return regions


def pack(matrix: Array, regions: Sequence[Region]) -> Array:
    """Return the numbers of *regions*, one after the other."""
    parts = [matrix[r.rows, r.columns].reshape(-1) for r in regions]
    return parts[0] if len(parts) == 1 else np.concatenate([matrix[:0, :0].reshape(-1), *parts])


def unpack(matrix: Array, regions: Sequence[Region], packed: Array) -> None:
    """Write packed numbers into a rank's matrix: undoes ``pack``.

    Args:
        matrix: the rank's share, see ``Cut.matrix``; written in place.
        packed: (numbers of all regions,), in order.
    """
    for region, part in _parts(regions, packed):
        matrix[region.rows, region.columns] = part


def place(run: Array, regions: Sequence[Region], packed: Array) -> None:
    """Write a rank's packed numbers where they lie in the run.

    Args:
        run: (numbers of the run,); written in place.
        packed: (numbers of all regions,), in order.
    """
    for region, part in _parts(regions, packed):
        region.of_run(run)[...] = part


def pick(run: Array, regions: Sequence[Region]) -> Array:
    """Return a rank's numbers within a run, packed."""
    parts = [region.of_run(run).reshape(-1) for region in regions]
    return parts[0] if len(parts) == 1 else np.concatenate([run[:0], *parts])


def _parts(regions: Sequence[Region], packed: Array) -> Iterator[tuple[Region, Array]]:
    begin = 0
    for region in regions:
        rows = region.rows.stop - region.rows.start
        yield region, packed[begin : begin + region.numbers].reshape(rows, -1)
        begin += region.numbers


def _rectangles(first: int, last: int, width: int) -> Iterator[tuple[slice, int, int]]:
    """Yield (rows, first column, column behind the last) that cover *first* to *last*."""
    if first >= last:
        return
    top, left = divmod(first, width)
    bottom, right = divmod(last, width)
    if top == bottom:
        yield slice(top, top + 1), left, right
        return
    if left:
        yield slice(top, top + 1), left, width
        top += 1
    if top < bottom:
        yield slice(top, bottom), 0, width
    if right:
        yield slice(bottom, bottom + 1), 0, right
