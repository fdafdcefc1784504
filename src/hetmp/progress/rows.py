"""The rows of ranks that are seen: all of them, or those that matter where they are many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetmp.metrics import KINDS


@dataclass(frozen=True)
class Row:
    """A rank, or the mean of several.

    Attributes:
        name: the rank's number, or how many there are.
        share: of the channels, from 0 to 1; of several ranks each one's.
        seconds: by kind, in the order of ``KINDS``.
    """

    name: str
    share: float
    seconds: tuple[float, ...]


def rows_for(shares: Sequence[float], spent: Mapping[str, Sequence[float]], room: int) -> list[Row]:
    """A row per rank where *room* allows it; else the slowest, the mean of the others, the fastest.

    The slowest rank is the one that computes longest; it comes first where not all are shown.

    Args:
        spent: seconds by kind and rank.
    """
    ranks = range(len(shares))
    whole = max(1e-9, sum(shares))
    seconds = [tuple(spent[kind][rank] for kind in KINDS) for rank in ranks]
    rows = [Row(f"{rank}", shares[rank] / whole, seconds[rank]) for rank in ranks]
    if len(rows) <= room:
        return rows
    rows.sort(key=lambda row: -row.seconds[KINDS.index("compute")])
    if room < 3:
        return rows[: max(1, room)]
    slowest = room // 2
    fastest = room - 1 - slowest
    others = rows[slowest : len(rows) - fastest]
    mean = tuple(sum(told) / len(others) for told in zip(*(o.seconds for o in others), strict=True))
    share = sum(other.share for other in others) / len(others)
    return [*rows[:slowest], Row(f"{len(others)} others", share, mean), *rows[-fastest:]]
