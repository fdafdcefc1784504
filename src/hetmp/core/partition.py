"""How one channel axis is cut over the ranks: arithmetic only, no MPI, no torch.

Every rank can compute every rank's share, so nothing here communicates.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate
from numbers import Rational
from typing import Any

from hetmp.core.checks import whole_number
from hetmp.core.errors import HetmpError

Weight = float | Fraction
"""A rank's relative speed; only ratios matter."""


@dataclass(frozen=True)
class Partition:
    """A count per rank, in rank order; counts may be 0.

    >>> Partition((4, 7)).slice(1)
    slice(4, 11, None)
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = tuple(self.counts)
        if not counts:
            raise HetmpError("a partition needs a count for at least one rank, got none")
        if all(type(count) is int and count >= 0 for count in counts):
            object.__setattr__(self, "counts", counts)
            return
        checked = []
        for rank, count in enumerate(counts):
            try:
                checked.append(whole_number("count", count, 0))
            except HetmpError:
                raise HetmpError(
                    f"partition {counts} gives rank {rank} {count!r}: "
                    "counts are whole numbers, 0 or more"
                ) from None
        object.__setattr__(self, "counts", tuple(checked))

    @property
    def ranks(self) -> int:
        """The number of ranks that share the axis."""
        return len(self.counts)

    @cached_property
    def total(self) -> int:
        """The length of the axis."""
        return sum(self.counts)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The index at which each rank's slice begins."""
        return tuple(accumulate(self.counts[:-1], initial=0))

    def slice(self, rank: int) -> slice:
        """Return the indices of the axis that *rank* holds."""
        return slice(self.starts[rank], self.starts[rank] + self.counts[rank])


@dataclass(frozen=True)
class Piece:
    """A run of an axis cut by one partition, each of whose units is *block* indices long."""

    partition: Partition
    block: int = 1

    def __post_init__(self) -> None:
        if self.block < 1:
            raise HetmpError(f"a piece's block is at least 1, got {self.block}")

    @property
    def total(self) -> int:
        """The length of the piece in indices."""
        return self.partition.total * self.block


@dataclass(frozen=True, eq=False)
class Layout:
    """An axis as a sequence of pieces; a rank's share of it is a list of slices.

    A convolution's output is one piece with block 1. Flattening channels and a plane of
    ``H*W`` makes the block ``H*W``; a concatenation on channels has a piece per operand.
    Layouts that give every index to the same rank are equal, however they are put together.

    >>> Layout.of(Partition((1, 2)), block=4).slices(1)
    (slice(4, 12, None),)
    """

    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        ranks = {piece.partition.ranks for piece in self.pieces}
        if len(ranks) != 1:
            raise HetmpError(
                f"a layout's pieces must be over the same ranks, got pieces over {sorted(ranks)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        return self.ranks == other.ranks and self._runs == other._runs

    def __hash__(self) -> int:
        return hash((self.ranks, self._runs))

    @classmethod
    def of(cls, partition: Partition, block: int = 1) -> "Layout":
        """Return the layout of a single piece."""
        return cls((Piece(partition, block),))

    @classmethod
    def joined(cls, layouts: Sequence["Layout"]) -> "Layout":
        """Join layouts, one axis after the other, as concatenation does."""
        return cls(tuple(piece for layout in layouts for piece in layout.pieces))

    @property
    def ranks(self) -> int:
        """The number of ranks that share the axis."""
        return self.pieces[0].partition.ranks

    @cached_property
    def total(self) -> int:
        """The length of the axis."""
        return sum(piece.total for piece in self.pieces)

    @property
    def length(self) -> int:
        """The length of the axis, which is known before a batch arrives."""
        return self.total

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of indices of each rank, over all pieces."""
        return tuple(
            sum(piece.partition.counts[rank] * piece.block for piece in self.pieces)
            for rank in range(self.ranks)
        )

    @cached_property
    def _slices(self) -> tuple[tuple[slice, ...], ...]:
        shares: list[list[slice]] = [[] for _ in range(self.ranks)]
        start = 0
        for piece in self.pieces:
            for share, count in zip(shares, piece.partition.counts, strict=True):
                stop = start + count * piece.block
                share.append(slice(start, stop))
                start = stop
        return tuple(tuple(share) for share in shares)

    @cached_property
    def _runs(self) -> tuple[tuple[int, int], ...]:
        """The runs of indices that one rank holds, in order: (rank, length) pairs."""
        runs: list[tuple[int, int]] = []
        for piece in self.pieces:
            for rank, count in enumerate(piece.partition.counts):
                length = count * piece.block
                if length and runs and runs[-1][0] == rank:
                    length += runs.pop()[1]
                if length:
                    runs.append((rank, length))
        return tuple(runs)

    def slices(self, rank: int) -> tuple[slice, ...]:
        """Return the indices that *rank* holds: a slice per piece, in the order it stores them."""
        return self._slices[rank]

    def within(self, rank: int, start: int, stop: int) -> slice:
        """Return where *rank* stores those of its indices that lie from *start* to *stop*."""
        before = sum(_overlap(piece, 0, start) for piece in self.slices(rank))
        inside = sum(_overlap(piece, start, stop) for piece in self.slices(rank))
        return slice(before, before + inside)

    def scaled(self, block: int) -> "Layout":
        """Return the layout after each index became *block* neighbouring ones, as in flattening."""
        return Layout(tuple(Piece(piece.partition, piece.block * block) for piece in self.pieces))

    def cut(self, start: int, stop: int) -> "Layout":
        """Return the layout of the indices from *start* to *stop* alone."""
        pieces, begin = [], 0
        for piece in self.pieces:
            counts = []
            for count in piece.partition.counts:
                length = count * piece.block
                counts.append(_overlap(slice(begin, begin + length), start, stop))
                begin += length
            if any(counts):
                pieces.append(Piece(Partition(tuple(counts))))
        return Layout(tuple(pieces) or (Piece(Partition((0,) * self.ranks)),))

    def grouped(self, size: int) -> "Layout | None":
        """Return the layout in units of *size* neighbouring indices; None where a share cuts one.

        The inverse of ``scaled``.
        """
        if any(length % size for _, length in self._runs):
            return None
        pieces: list[list[int]] = [[0] * self.ranks]
        last = 0
        for rank, length in self._runs:
            if rank < last:  # within a piece, ranks come in order
                pieces.append([0] * self.ranks)
            pieces[-1][rank], last = length // size, rank
        return Layout(tuple(Piece(Partition(tuple(counts))) for counts in pieces))

    def folded(self, parts: int) -> "Layout | None":
        """Return the layout of one of *parts* equal parts; None where they are cut differently."""
        size, rest = divmod(self.total, parts)
        if rest:
            return None
        first, *others = (self.cut(i * size, (i + 1) * size) for i in range(parts))
        return first if all(other == first for other in others) else None

    def tie(self, other: "Layout") -> bool:
        """Return whether both axes are cut alike."""
        return self == other

    def like(self, total: int) -> "Layout":
        """Return the layout of an axis of *total* indices, shared in the same proportions."""
        return Layout.of(apportion(total, self.counts))


def _overlap(piece: slice, start: int, stop: int) -> int:
    return max(0, min(piece.stop, stop) - max(piece.start, start))


def apportion(
    total: int, weights: Sequence[Weight], *, multiple_of: int = 1, at_least: int = 0
) -> Partition:
    """Share *total* channels in proportion to *weights* by the largest-remainder method.

    The counts sum to *total*. Without the options each is within one of its quota
    ``total * weight / sum(weights)``, and raising a rank's own weight never lowers its
    count. Ties go to the lower rank. The arithmetic is exact (rational), so the result is the
    same on every machine. A rank of weight 0 gets 0.

    ``multiple_of`` makes every count a multiple of it. ``at_least`` is a floor for every rank
    whose weight is above 0: ranks below the floor get it, the others share the rest.

    Source: the method of largest remainders (Hamilton); Balinski and Young, *Fair
    Representation* (1982), appendix A.

    Raises:
        HetmpError: weights that are empty, negative, NaN, infinite or all zero; a *total* or
            options that are not whole numbers in range, or that cannot be met together.

    >>> apportion(60, (70, 25, 5)).counts
    (42, 15, 3)
    """
    total = whole_number("total", total, 0)
    multiple_of = whole_number("multiple_of", multiple_of, 1)
    at_least = whole_number("at_least", at_least, 0)
    exact = checked_weights(weights)
    units, rest = divmod(total, multiple_of)
    if rest:
        raise HetmpError(
            f"{total} channels cannot be cut into multiples of {multiple_of}: "
            f"choose a multiple_of that divides {total}"
        )
    floor = math.ceil(Fraction(at_least, multiple_of))
    working = [rank for rank, weight in enumerate(exact) if weight > 0]
    if floor * len(working) > units:
        raise HetmpError(
            f"{total} channels cannot give {len(working)} ranks at least {at_least} each"
            + (f" in multiples of {multiple_of}" if multiple_of > 1 else "")
            + ": lower at_least, or give fewer ranks a weight above 0"
        )

    counts = [0] * len(exact)
    # Each round sets at least one rank to the floor, so there are at most as many as ranks.
    while below := _below_floor(units, floor, working, exact):
        for rank in below:
            counts[rank] = floor
        units -= floor * len(below)
        working = [rank for rank in working if rank not in below]
    for rank, count in _largest_remainder(units, working, exact):
        counts[rank] = count
    return Partition(tuple(count * multiple_of for count in counts))


def checked_weights(weights: Iterable[Any], ranks: int | None = None) -> tuple[Fraction, ...]:
    """Return the weights as exact fractions; refuse weights that cannot be used.

    Raises:
        HetmpError: not numbers, negative, NaN, infinite, all zero, or not one per rank of *ranks*.
    """
    try:
        listed = list(weights)
    except TypeError:
        raise HetmpError(f"weights must be one number per rank, got {weights!r}") from None
    never_change = set(map(type, listed)) <= {int, float, Fraction}
    exact = (_known_fractions if never_change else _fractions)(tuple(listed))
    if not exact:
        raise HetmpError("no weights given: give one per rank")
    if ranks is not None and len(exact) != ranks:
        raise HetmpError(
            f"{len(exact)} weights ({_listed(listed)}) for {ranks} ranks: give one weight per "
            f"rank, or start {len(exact)} ranks"
        )
    if not any(exact):
        raise HetmpError(f"all weights are 0 ({_listed(listed)}): at least one rank must have work")
    return exact


def _listed(weights: Sequence[Any]) -> str:
    return ", ".join(map(str, weights))


def _fractions(weights: tuple[Any, ...]) -> tuple[Fraction, ...]:
    """Return weights as exact fractions; refuse those that are not finite numbers from 0 on."""
    exact = []
    for rank, weight in enumerate(weights):
        try:
            if isinstance(weight, str | bytes):
                raise TypeError
            if isinstance(weight, Rational):  # numpy's integers would overflow inside a Fraction
                value = Fraction(int(weight.numerator), int(weight.denominator))
            else:
                value = Fraction(float(weight))
        except (TypeError, ValueError, OverflowError):
            raise HetmpError(
                f"weight {weight!r} of rank {rank} is not a finite number "
                f"(weights: {_listed(weights)})"
            ) from None
        if value < 0:
            raise HetmpError(
                f"weight {weight!r} of rank {rank} is negative (weights: {_listed(weights)}): "
                "a weight is a relative speed, 0 or more"
            )
        exact.append(value)
    return tuple(exact)


_known_fractions = lru_cache(maxsize=64)(_fractions)
"""The same for numbers that a plan has for many layers."""


def _below_floor(
    units: int, floor: int, working: list[int], weights: tuple[Fraction, ...]
) -> list[int]:
    weight = sum(weights[rank] for rank in working)
    return [rank for rank in working if units * weights[rank] < floor * weight]


def _largest_remainder(
    units: int, working: list[int], weights: tuple[Fraction, ...]
) -> list[tuple[int, int]]:
    weight = sum(weights[rank] for rank in working)
    quotas = [units * weights[rank] / weight for rank in working]
    counts = [math.floor(quota) for quota in quotas]
    # Python's sort is stable: among equal remainders the lower rank comes first.
    order = sorted(range(len(working)), key=lambda i: counts[i] - quotas[i])
    for i in order[: units - sum(counts)]:
        counts[i] += 1
    return list(zip(working, counts, strict=True))
