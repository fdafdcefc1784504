"""A channel axis whose partition is not chosen yet: the symbolic twin of ``Layout``.

Operators say what they do to a layout: they join, cut, scale, fold it. Asked of an ``Axis``
instead, the same words tell which axes must share one partition. An axis is a sequence of
atoms; tying two axes makes their atoms the same, cutting one cuts its atoms, and what is cut or
tied in one place is so wherever the atom occurs. In the end every atom is a channel group.

The idea of finding what must be cut together by following the operators is that of dependency
graphs in structural pruning (Fang et al., *DepGraph*, CVPR 2023).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(eq=False)
class Atom:
    """A run of channels that is cut by one partition.

    Attributes:
        length: in units.
        parts: what it turned out to consist of: (atom, indices per unit) pairs; None while it
            stands for itself.
    """

    length: int
    parts: "list[tuple[Atom, int]] | None" = field(default=None, repr=False)

    def leaves(self, block: int = 1) -> "list[tuple[Atom, int]]":
        """(atom, block) pairs of what it consists of now, each unit *block* indices long."""
        if self.parts is None:
            return [(self, block)]
        return [leaf for atom, units in self.parts for leaf in atom.leaves(units * block)]


def _undone_if_it_fails(
    change: "Callable[Concatenate[Axis, _Arguments], _Result]",
) -> "Callable[Concatenate[Axis, _Arguments], _Result]":
    """*change* leaves all atoms as they were where it gives None or False."""

    @functools.wraps(change)
    def tried(axis: "Axis", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        axes = [axis, *(arg for arg in args if isinstance(arg, Axis))]
        atoms = [atom for one in axes for atom, _ in one.leaves]
        done = change(axis, *args, **kwargs)
        if done is None or done is False:
            for atom in atoms:
                atom.parts = None
        return done

    return tried


class Axis:
    """A sequence of (atom, block) pairs: *block* neighbouring indices per unit of the atom."""

    def __init__(self, pieces: Sequence[tuple[Atom, int]]) -> None:
        self._pieces = tuple(pieces)

    @classmethod
    def fresh(cls, total: int) -> "Axis":
        """An axis that nothing is known of but its length."""
        return cls([(Atom(total), 1)])

    @classmethod
    def joined(cls, axes: Sequence["Axis"]) -> "Axis":
        """One axis after the other."""
        return cls([piece for axis in axes for piece in axis._pieces])

    @property
    def leaves(self) -> list[tuple[Atom, int]]:
        """The (atom, block) pairs that it consists of now."""
        return [leaf for atom, block in self._pieces for leaf in atom.leaves(block)]

    @property
    def total(self) -> int:
        """The length of the axis in indices."""
        return sum(atom.length * block for atom, block in self._pieces)

    def scaled(self, block: int) -> "Axis":
        """The axis after each index became *block* neighbouring ones."""
        return Axis([(atom, units * block) for atom, units in self._pieces])

    @_undone_if_it_fails
    def cut(self, start: int, stop: int) -> "Axis | None":
        """The indices from *start* to *stop*; None if that cuts a block."""
        if not (self._cut_at(start) and self._cut_at(stop)):
            return None
        inside, begin = [], 0
        for atom, block in self.leaves:
            if start <= begin < stop:
                inside.append((atom, block))
            begin += atom.length * block
        return Axis(inside)

    @_undone_if_it_fails
    def grouped(self, size: int) -> "Axis | None":
        """The axis in units of *size* neighbouring indices, which no rank's share may cut."""
        units = []
        # An atom that stands here twice may have changed by the second time.
        now = (leaf for atom, block in self.leaves for leaf in atom.leaves(block))
        for atom, block in now:
            together = math.lcm(block, size)
            if atom.length * block % together:
                return None
            if together != block:
                whole = Atom(atom.length * block // together)
                atom.parts = [(whole, together // block)]
                atom = whole
            units.append((atom, together // size))
        return Axis(units)

    @_undone_if_it_fails
    def folded(self, parts: int) -> "Axis | None":
        """One of *parts* equal parts of the axis, which are all cut alike."""
        size, rest = divmod(self.total, parts)
        if rest:
            return None
        cuts = [self.cut(i * size, (i + 1) * size) for i in range(parts)]
        first = cuts[0]
        if first is None or not all(cut is not None and cut.tie(first) for cut in cuts[1:]):
            return None
        return first

    def like(self, total: int) -> "Axis":
        """Another axis: it may be cut in its own way."""
        return Axis.fresh(total)

    @_undone_if_it_fails
    def tie(self, other: "Axis") -> bool:
        """Make both axes one, so that they are cut alike; False if that cannot be."""
        if self.total != other.total:
            return False
        while True:
            mine, theirs = self.leaves, other.leaves
            pair = next(((a, b) for a, b in zip(mine, theirs, strict=False) if a != b), None)
            if pair is None:
                return len(mine) == len(theirs)
            (a, s), (b, t) = pair
            if a.length * s > b.length * t:
                if not _split(a, s, b.length * t):
                    return False
            elif a.length * s < b.length * t:
                if not _split(b, t, a.length * s):
                    return False
            elif not _merge(a, s, b, t):
                return False

    def _cut_at(self, index: int) -> bool:
        begin = 0
        for atom, block in self.leaves:
            if begin < index < begin + atom.length * block:
                return _split(atom, block, index - begin)
            begin += atom.length * block
        return True


def _split(atom: Atom, block: int, index: int) -> bool:
    """Cut *atom* at *index* of its indices, *block* to a unit."""
    units, rest = divmod(index, block)
    if rest:
        return False
    atom.parts = [(Atom(units), 1), (Atom(atom.length - units), 1)]
    return True


def _merge(a: Atom, s: int, b: Atom, t: int) -> bool:
    """Make two atoms of equal lengths in indices, *s* and *t* to a unit, the same."""
    if a is b:
        return False  # one atom under two blocks: the channels of one lie across the other's
    together = math.lcm(s, t)
    if a.length * s % together:
        return False
    if together in (s, t):
        (kept, larger), (tied, smaller) = ((a, s), (b, t)) if together == s else ((b, t), (a, s))
        tied.parts = [(kept, larger // smaller)]
        return True
    both = Atom(a.length * s // together)
    a.parts, b.parts = [(both, together // s)], [(both, together // t)]
    return True
