"""A channel axis whose partition is not chosen yet: the symbolic twin of ``Layout``.

Operators join, cut, scale and fold a layout. Given an ``Axis`` instead, the same calls find
which axes must share one partition. An axis is a sequence of atoms; tying two axes makes their
atoms the same, cutting an axis cuts its atoms, and this holds wherever the atom occurs. In the
end every atom is a channel group.

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
    """A run of channels that is cut by one partition: a node of a union-find.

    Attributes:
        length: in units.
        parts: the (atom, indices per unit) pairs that replaced it; None while it is a root.
        height: no less than the longest chain of atoms that leads to it.
    """

    length: int
    parts: "list[tuple[Atom, int]] | None" = field(default=None, repr=False)
    height: int = field(default=0, repr=False)

    def leaves(self, block: int = 1) -> "list[tuple[Atom, int]]":
        """Return the (atom, block) pairs that it consists of now, *block* indices to a unit."""
        return _leaves([(self, block)])


def _leaves(pieces: "Sequence[tuple[Atom, int]]") -> "list[tuple[Atom, int]]":
    """Return the leaves of (atom, block) pairs, in order."""
    ahead, leaves = [*reversed(pieces)], []
    while ahead:
        leaves.append(_next(ahead))
    return leaves


def _next(ahead: "list[tuple[Atom, int]]") -> "tuple[Atom, int]":
    """Remove and return the first leaf of the stack *ahead*, whose last piece comes first."""
    atom, block = ahead.pop()
    while atom.parts is not None:
        ahead.extend((part, units * block) for part, units in reversed(atom.parts))
        atom, block = ahead.pop()
    return atom, block


def _undone_if_it_fails(
    change: "Callable[Concatenate[Axis, _Arguments], _Result]",
) -> "Callable[Concatenate[Axis, _Arguments], _Result]":
    """Wrap *change* so that all atoms stay as they were where it returns None or False."""

    @functools.wraps(change)
    def tried(axis: "Axis", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        axes = [axis, *(arg for arg in args if isinstance(arg, Axis))]
        atoms = [atom for changing in axes for atom, _ in changing.leaves]
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
        """Return an axis of which only the length is known."""
        return cls([(Atom(total), 1)])

    @classmethod
    def joined(cls, axes: Sequence["Axis"]) -> "Axis":
        """Join axes, one after the other."""
        return cls([piece for axis in axes for piece in axis._pieces])

    @property
    def leaves(self) -> list[tuple[Atom, int]]:
        """The (atom, block) pairs that it consists of now."""
        return _leaves(self._pieces)

    @functools.cached_property
    def total(self) -> int:
        """The length of the axis in indices."""
        return sum(atom.length * block for atom, block in self._pieces)

    @property
    def length(self) -> int:
        """The length of the axis, which is known before a batch arrives."""
        return self.total

    def scaled(self, block: int) -> "Axis":
        """Return the axis after each index became *block* neighbouring ones."""
        return Axis([(atom, units * block) for atom, units in self._pieces])

    @_undone_if_it_fails
    def cut(self, start: int, stop: int) -> "Axis | None":
        """Return the indices from *start* to *stop*; None if that cuts a block."""
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
        """Return the axis in units of *size* neighbouring indices, which no share may cut."""
        units = []
        # An atom that occurs twice may have changed before its second occurrence.
        now = (leaf for atom, block in self.leaves for leaf in atom.leaves(block))
        for atom, block in now:
            together = math.lcm(block, size)
            if atom.length * block % together:
                return None
            if together != block:
                whole = Atom(atom.length * block // together, height=atom.height + 1)
                atom.parts = [(whole, together // block)]
                atom = whole
            units.append((atom, together // size))
        return Axis(units)

    @_undone_if_it_fails
    def folded(self, parts: int) -> "Axis | None":
        """Return one of *parts* equal parts, all of them cut alike; None if impossible."""
        size, rest = divmod(self.total, parts)
        if rest:
            return None
        cuts = [self.cut(i * size, (i + 1) * size) for i in range(parts)]
        first = cuts[0]
        if first is None or not all(cut is not None and cut.tie(first) for cut in cuts[1:]):
            return None
        return first

    def like(self, total: int) -> "Axis":
        """Return another axis of *total* indices, which may be cut in its own way."""
        return Axis.fresh(total)

    @_undone_if_it_fails
    def tie(self, other: "Axis") -> bool:
        """Make both axes one, so that they are cut alike; return False if that is impossible."""
        if self.total != other.total:
            return False
        # Merged atoms stay merged, so one pass over both axes is enough.
        mine, theirs = [*reversed(self._pieces)], [*reversed(other._pieces)]
        while mine and theirs:
            (a, s), (b, t) = _next(mine), _next(theirs)
            if a is b and s == t:
                continue
            if a.length * s > b.length * t:
                changed = _split(a, s, b.length * t)
            elif a.length * s < b.length * t:
                changed = _split(b, t, a.length * s)
            else:
                changed = _merge(a, s, b, t)
            if not changed:
                return False
            mine.append((a, s))
            theirs.append((b, t))
        return not mine and not theirs

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
    height = atom.height + 1
    atom.parts = [(Atom(part, height=height), 1) for part in (units, atom.length - units)]
    return True


def _merge(atom: Atom, block: int, other: Atom, other_block: int) -> bool:
    """Make two atoms of equal lengths in indices the same: the union of a union-find.

    *block* and *other_block* are the indices per unit of each. ``parts`` leads to the root, and
    the union is by height. Return False if the atoms cannot be one.
    """
    if atom is other:
        return False  # one atom under two blocks: the channels of one lie across the other's
    together = math.lcm(block, other_block)
    if atom.length * block % together:
        return False
    if together not in (block, other_block):
        both = Atom(atom.length * block // together, height=max(atom.height, other.height) + 1)
        atom.parts, other.parts = [(both, together // block)], [(both, together // other_block)]
        return True
    # Where either could be the root, the higher one is: so chains stay short, however many
    # residual blocks are tied one after the other.
    first = atom.height >= other.height if block == other_block else together == block
    pairs = (atom, block), (other, other_block)
    (root, larger), (child, smaller) = pairs if first else reversed(pairs)
    child.parts = [(root, larger // smaller)]
    root.height = max(root.height, child.height + 1)
    return True
