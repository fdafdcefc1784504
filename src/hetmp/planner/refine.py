"""Move channels and images from rank to rank while a whole step is predicted to become faster.

Every channel group is balanced by itself, so that a rank waits wherever a group cannot be cut
evenly. Over the whole step such a rank may have more of another group: where the exchanges between
them leave it the time, and where it computes parameter gradients while it would wait.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hetmp.core.partition import Partition
from hetmp.ops import SCHEMES
from hetmp.planner.predict import Prediction
from hetmp.planner.profiling import GRID
from hetmp.planner.splits import Split, Splitter

GAIN = 1e-3
"""Least share of the step's time that a move must save."""


def refine(splitter: Splitter, split: Split, caps: Sequence[float]) -> Split:
    """Return *split*, or what moves from one rank to another make of it.

    A move takes a grid step of channels, or an image, from the rank that waits least to the one
    that waits most, over the step or at one layer, and stays if the step is predicted to be faster
    by ``GAIN``. As many are tried as are affordable.

    Args:
        splitter: the search that *split* comes from.
        caps: the largest share of any channel group, and of the batch, by rank.
    """
    if splitter.tables.ranks == 1:
        return split
    left = splitter.affordable
    improved = True
    while improved and left > 0:
        improved = False
        prediction = splitter.predict(split)
        for moved in _moves(splitter, split, prediction, caps):
            if left == 0:
                break
            left -= 1
            after = splitter.predict(moved)
            if after.seconds < (1 - GAIN) * prediction.seconds and splitter.fits(after):
                split, improved = moved, True
                break
    return split


def _moves(
    splitter: Splitter, split: Split, prediction: Prediction, caps: Sequence[float]
) -> Iterator[Split]:
    """Yield splits that differ from *split* by one move, the most promising first."""
    layers = prediction.layers
    total = sum((layer.idle for layer in layers.values()), start=np.zeros(len(caps)))
    compute = {name: float(layer.compute.max()) for name, layer in layers.items()}
    if any(SCHEMES[scheme].cuts_batch for scheme in split.schemes.values()):
        images = sum(split.weights)
        weights = _moved(split.weights, total, 1, [cap * images for cap in caps])
        if weights is not None:
            yield replace(split, weights=tuple(map(float, weights)))
    groups = sorted(
        splitter.model.groups.groups,
        key=lambda group: -max(compute.get(name, 0.0) for name in group.layers),
    )
    tried: set[tuple[int, tuple[int, ...]]] = set()
    for group in groups:
        counts = split.shares[group.number].counts
        most = [cap * group.units for cap in caps]
        own = sum((layers[n].idle for n in group.layers if n in layers), start=np.zeros(len(caps)))
        for idle in (total, own):
            moved = _moved(counts, idle, _grid_step(group.units), most)
            key = group.number, tuple(map(int, moved or ()))
            if moved is None or key in tried:
                continue
            tried.add(key)
            partition = Partition(tuple(map(int, moved)))
            yield replace(split, shares={**split.shares, group.number: partition})


def _moved(
    counts: Sequence[float], idle: np.ndarray, step: int, most: Sequence[float]
) -> list[float] | None:
    """Return *counts* after a move to the rank with the most *idle* time; None if none can be."""
    fast, slow = int(idle.argmax()), int(idle.argmin())
    if fast == slow or counts[slow] < step or counts[fast] + step > most[fast]:
        return None
    moved = list(counts)
    moved[slow] -= step
    moved[fast] += step
    return moved


def _grid_step(units: int) -> int:
    """Return how many units are moved at a time: those between two measured counts."""
    return next((grid for grid in (GRID, GRID // 2, GRID // 4) if units >= 4 * grid), 1)
