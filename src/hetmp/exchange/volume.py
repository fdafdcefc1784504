"""The bytes that an exchange must move: arithmetic on states, no MPI.

| exchange | bytes that rank r receives, of a whole value of B bytes |
| --- | --- |
| sliced -> full | B - share of r |
| partial -> sliced | (P - 1) * share of r |
| partial -> full | 2 (P - 1) / P * B (Patarasuk and Yuan, 2009) |
| full -> sliced, sliced -> partial | 0 |
| sliced(p) -> sliced(q), on one axis | what r holds in q and not in p |
| sliced(p) -> sliced(q), on two axes | share of r in q * (1 - share of r in p) * B |

Where a state is cut along the batch, shares are those of the batch's length.
"""

from fractions import Fraction

from hetmp.core.state import FULL, PARTIAL, Full, Partial, Sliced, State, at_arrival
from hetmp.exchange.exchange import dual
from hetmp.exchange.moves import overlaps

MANY = 2**20
"""Images of a batch whose shares are as the weights say, nearly."""


def received(
    source: State, target: State, rank: int, size: int, ranks: int, images: int = MANY
) -> tuple[float, float]:
    """Return the bytes that *rank* receives of a value of *size* bytes: (forward, backward).

    *source* and *target* are the states of the exchange, over *ranks* ranks; *size* is that of the
    whole value, of a batch of *images*.
    """
    forward, backward = _parts(at_arrival(source, images), at_arrival(target, images), rank, ranks)
    return float(size * forward), float(size * backward)


def received_of_batch(
    source: State, target: State, rank: int, size: int, ranks: int, images: int
) -> tuple[int, int]:
    """Return the bytes as ``received`` does, to the byte: those that are counted in a step."""
    forward, backward = _parts(at_arrival(source, images), at_arrival(target, images), rank, ranks)
    return int(size * forward), int(size * backward)


def received_of_sum(size: int, ranks: int) -> int:
    """Return the bytes that each of *ranks* ranks receives where *size* bytes are summed."""
    return int(size * _part(PARTIAL, FULL, 0, ranks))


def received_by_all(
    source: State, target: State, size: int, ranks: int, images: int = MANY
) -> float:
    """Return the bytes that all ranks receive of a value of *size*, forward and backward.

    *source* and *target* are the states of the exchange, over *ranks* ranks; *size* is in bytes, of
    the whole value, of a batch of *images*.
    """
    source, target = at_arrival(source, images), at_arrival(target, images)
    moved = Fraction(0)
    for before, after in ((source, target), (dual(target), dual(source))):
        if isinstance(before, Sliced) and isinstance(after, Sliced):
            moved += sum(_part(before, after, rank, ranks) for rank in range(ranks))
        elif isinstance(before, Partial) and isinstance(after, Full):
            moved += 2 * (ranks - 1)
        elif isinstance(before, Sliced | Partial) and isinstance(after, Sliced | Full):
            moved += ranks - 1  # shares add up to one
    return float(size * moved)


def _parts(source: State, target: State, rank: int, ranks: int) -> tuple[Fraction, Fraction]:
    """Return what *rank* receives of the whole value: (forward, backward)."""
    backward = _part(dual(target), dual(source), rank, ranks)
    return _part(source, target, rank, ranks), backward


def _part(source: State, target: State, rank: int, ranks: int) -> Fraction:
    if isinstance(source, Partial) and isinstance(target, Full):
        return Fraction(2 * (ranks - 1), ranks)
    if isinstance(source, Sliced) and isinstance(target, Full):
        return 1 - _share(source, rank)
    if isinstance(source, Partial) and isinstance(target, Sliced):
        return (ranks - 1) * _share(target, rank)
    if isinstance(source, Sliced) and isinstance(target, Sliced):
        if source.axis != target.axis:
            return _share(target, rank) * (1 - _share(source, rank))
        staying = sum(o.size for o in overlaps(source.layout, rank, target.layout, rank))
        return _share(target, rank) - Fraction(staying, max(1, target.layout.total))
    return Fraction(0)


def _share(state: Sliced, rank: int) -> Fraction:
    return Fraction(state.layout.counts[rank], max(1, state.layout.total))
