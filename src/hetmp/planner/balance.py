"""Divide the channels of a group over the ranks by measured times.

The threshold search: the smallest time T for which the ranks' largest counts that take at most T
add up to the group. Exact for tables that never fall (Lastovetsky and Reddy, 2007, for
functional performance models); here tables may fall, and a rank then takes the larger count.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.planner.tables import Array

Counts = npt.NDArray[np.int64]


def balanced(times: Array, caps: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the count of every rank for which the slowest rank takes the least time.

    Args:
        times: (ranks, units + 1) seconds of each rank for every count from 0 to all.
        caps: the most units of each rank; all of them if None.

    Raises:
        HetmpError: the caps leave too little room.
    """
    ranks, units = times.shape[0], times.shape[1] - 1
    most = np.full(ranks, units) if caps is None else np.minimum(caps, units)
    if most.sum() < units:
        raise HetmpError(f"the ranks' caps allow {most.sum()} of {units} channels: raise them")
    # The least time of this count or any larger one: it never falls, so it can be searched.
    reach = times.copy()
    reach[np.arange(units + 1)[None, :] > most[:, None]] = np.inf
    reach = np.minimum.accumulate(reach[:, ::-1], axis=1)[:, ::-1]
    candidates = np.unique(reach[np.isfinite(reach)])
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if _largest(reach, candidates[middle]).sum() >= units:
            high = middle
        else:
            low = middle + 1
    counts = _largest(reach, candidates[low])
    return tuple(int(count) for count in _without_excess(counts, times, candidates[low], units))


def counts_on_grid(counts: Sequence[int], grid: int) -> tuple[int, ...]:
    """Round counts to multiples of *grid*; the rank with the most gets the remainder.

    Counts below half of *grid* stay; all counts stay if the rounded ones would not add up.

    >>> counts_on_grid((211, 45), 16), counts_on_grid((44, 13, 3), 16), counts_on_grid((9, 8), 16)
    ((208, 48), (41, 16, 3), (9, 8))
    """
    most = max(range(len(counts)), key=lambda rank: counts[rank])
    rounded = [
        max(1, round(count / grid)) * grid if 2 * count >= grid else count for count in counts
    ]
    rounded[most] = sum(counts) - (sum(rounded) - rounded[most])
    return tuple(rounded) if rounded[most] >= max(rounded) else tuple(counts)


def _largest(reach: Array, seconds: float) -> Counts:
    """Return the largest count of each rank that takes at most *seconds*; 0 if none does."""
    return np.maximum((reach <= seconds).sum(axis=1) - 1, 0)


def _without_excess(counts: Counts, times: Array, seconds: float, units: int) -> Counts:
    """Reduce *counts* to the sum *units*, at the ranks where it saves the most time.

    A smaller count may take longer than *seconds* where a table falls: the least of those, then.
    """
    counts = counts.copy()
    while (excess := int(counts.sum()) - units) > 0:
        best: tuple[float, float, int, int] | None = None
        for rank in np.flatnonzero(counts):
            now = times[rank, counts[rank]]
            floor = max(0, counts[rank] - excess)
            after = times[rank, floor : counts[rank]]
            fits = np.flatnonzero(after <= seconds)
            # The whole excess if that fits, else the largest part of it that does.
            left = floor + (int(fits[0]) if len(fits) else 0)
            over = max(0.0, float(times[rank, left]) - seconds)
            candidate = (over, float(left - floor), int(rank), left)
            if best is None or candidate[:2] < best[:2] or (
                candidate[:2] == best[:2] and now > times[best[2], counts[best[2]]]
            ):  # fmt: skip
                best = candidate
        assert best is not None
        counts[best[2]] = best[3]
    return counts
