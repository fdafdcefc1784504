"""Moves numbers between slices and runs of whole rows, for writers and from readers.

A run is some rows of the whole tensor, in the order of the file. Its owner puts it together from
the slices of all ranks, or hands the slices out; nobody holds more than a run and its own slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetmp.checkpoint.regions import Cut, pack, pick, place, unpack
from hetmp.cluster import Group

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class RowRange:
    """Rows *first* to *last* of a tensor, held by rank *owner*."""

    owner: int
    first: int
    last: int


def rounds(blocks: Sequence[tuple[int, int]], owners: Sequence[int]) -> list[list[RowRange]]:
    """Divide the blocks of a tensor into rounds in which each owner has at most one."""
    width = len(owners)
    return [
        [
            RowRange(owner, *block)
            for owner, block in zip(owners, blocks[i : i + width], strict=False)
        ]
        for i in range(0, len(blocks), width)
    ]


def gather_rows(
    group: Group, cut: Cut, local: Array, runs: Sequence[RowRange], row: int
) -> Array | None:
    """Gather this rank's run from all ranks' slices; None without a run. Collective.

    Args:
        group: the ranks that hold the slices.
        cut: how the tensor is cut over them.
        local: this rank's slice, in C order.
        runs: at most one of each owner, the same on every rank.
        row: numbers in a row of the whole tensor.

    Returns:
        (rows of the run * row,), in the dtype of *local*.
    """
    matrix, me = cut.matrix(local, group.rank), group.rank
    own = own_run(group, runs)
    mine = {run.owner: cut.regions(me, run.first * row, run.last * row) for run in runs}
    regions = {}
    if own is not None:
        regions = {r: cut.regions(r, own.first * row, own.last * row) for r in range(group.size)}
    arrived = _exchange(
        group,
        {owner: pack(matrix, parts) for owner, parts in mine.items() if owner != me},
        {r: sum(x.numbers for x in parts) for r, parts in regions.items() if r != me},
        local.dtype,
    )
    if own is None:
        return None
    gathered = np.empty((own.last - own.first) * row, dtype=local.dtype)
    for region in regions[me]:  # what is here already does not travel
        region.of_run(gathered)[...] = matrix[region.rows, region.columns]
    for rank, part in arrived.items():
        place(gathered, regions[rank], part)
    return gathered


def scatter_rows(
    group: Group, cut: Cut, local: Array, runs: Sequence[RowRange], row: int, run: Array | None
) -> None:
    """Hand *run* out to all slices *local*, in place: undoes ``gather_rows``. Collective.

    Args:
        group: the ranks that hold the slices.
        cut: how the tensor is cut over them.
        local: this rank's slice, in C order; written in place.
        runs: at most one of each owner, the same on every rank.
        row: numbers in a row of the whole tensor.
        run: (rows of the run * row,), in the dtype of *local*; None without a run.
    """
    matrix = cut.matrix(local, group.rank)
    own = own_run(group, runs)
    sent: dict[int, Array] = {}
    if own is not None and run is not None:
        for rank in range(group.size):
            sent[rank] = pick(run, cut.regions(rank, own.first * row, own.last * row))
    wanted = {r.owner: cut.regions(group.rank, r.first * row, r.last * row) for r in runs}
    arrived = _exchange(
        group,
        sent,
        {owner: sum(region.numbers for region in parts) for owner, parts in wanted.items()},
        local.dtype,
    )
    for owner, part in arrived.items():
        unpack(matrix, wanted[owner], part)


def own_run(group: Group, runs: Sequence[RowRange]) -> RowRange | None:
    """Return this rank's run; None without one."""
    return next((run for run in runs if run.owner == group.rank), None)


def _exchange(
    group: Group, sent: dict[int, Array], counts: dict[int, int], dtype: np.dtype
) -> dict[int, Array]:
    """Send every rank its part; return the parts that arrive, of *counts* numbers. Collective."""
    size = dtype.itemsize
    outgoing = [sent[rank].nbytes if rank in sent else 0 for rank in range(group.size)]
    incoming = [counts.get(rank, 0) * size for rank in range(group.size)]
    parts = [np.ascontiguousarray(sent[rank]).view(np.uint8) for rank in sorted(sent)]
    packed = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
    arrived = group.alltoall(packed, outgoing, incoming)
    starts = np.cumsum([0, *incoming])
    return {
        rank: arrived[starts[rank] : starts[rank + 1]].view(dtype)
        for rank in range(group.size)
        if incoming[rank]
    }
