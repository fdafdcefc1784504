"""Axes whose partitions are not chosen yet: they do to lengths what layouts do to shares."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmp.core.open_axis import Axis
from hetmp.core.partition import Layout, Partition, Piece, apportion

KINDS = ("joined", "scaled", "cut", "grouped", "folded", "tie")

LONGEST = 240

TOTALS = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 35]), min_size=1, max_size=4)

STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), *[st.integers(0, 10**6)] * 4), min_size=1, max_size=12
)


class World:
    """Axes made by a sequence of operations, and what was asked of them.

    A step picks its operands and its numbers by remainders, so that any sequence can be run.
    """

    def __init__(self, totals, steps) -> None:
        self.axes = [Axis.fresh(total) for total in totals]
        self.asked: list[tuple[str, tuple[Axis, ...], tuple[int, ...], Axis | bool | None]] = []
        for kind, first, second, *numbers in steps:
            a, b = self.axes[first % len(self.axes)], self.axes[second % len(self.axes)]
            self.step(kind, a, b, *numbers)

    def step(self, kind: str, a: Axis, b: Axis, one: int, other: int) -> None:
        if kind == "joined":
            self.note(kind, (a, b), (), Axis.joined([a, b]))
        elif kind == "scaled":
            self.note(kind, (a,), (1 + one % 4,), a.scaled(1 + one % 4))
        elif kind == "cut":
            start = one % a.total
            bounds = start, start + 1 + other % (a.total - start)
            self.note(kind, (a,), bounds, a.cut(*bounds))
        elif kind == "grouped":
            size = (2, 3, 4, 6)[one % 4]
            self.note(kind, (a,), (size,), a.grouped(size))
        elif kind == "folded":
            self.note(kind, (a,), (2 + one % 3,), a.folded(2 + one % 3))
        else:
            self.note(kind, (a, b), (), a.tie(b))

    def note(self, kind, operands, numbers, result) -> None:
        self.asked.append((kind, operands, numbers, result))
        if isinstance(result, Axis) and result.total <= LONGEST:
            self.axes.append(result)

    @property
    def leaves(self) -> list:
        return [axis.leaves for axis in self.axes]


def chosen(world: World, draw) -> dict:
    """A partition for every atom, each in proportion to weights of its own."""
    ranks = draw(st.integers(1, 4))
    weights = st.lists(st.integers(0, 5), min_size=ranks, max_size=ranks).filter(any)
    atoms = {atom for leaves in world.leaves for atom, _ in leaves}
    atoms |= {a for _, operands, *_ in world.asked for axis in operands for a, _ in axis.leaves}
    atoms |= {a for *_, made in world.asked if isinstance(made, Axis) for a, _ in made.leaves}
    ordered = sorted(atoms, key=lambda atom: atom.length)
    return {atom: apportion(atom.length, draw(weights)) for atom in ordered}


def layout_of(axis: Axis, partitions: dict) -> Layout:
    return Layout(tuple(Piece(partitions[atom], block) for atom, block in axis.leaves))


@given(TOTALS, STEPS, st.data())
def test_whatever_partitions_are_chosen_the_layouts_agree(totals, steps, data):
    """What was cut can be cut, what was grouped is not cut inside, what was tied is equal."""
    world = World(totals, steps)
    partitions = chosen(world, data.draw)
    for kind, operands, numbers, result in world.asked:
        layouts = [layout_of(axis, partitions) for axis in operands]
        if kind == "joined":
            assert layout_of(result, partitions) == Layout.joined(layouts)
        elif kind == "tie":
            assert not result or layouts[0] == layouts[1]
        elif result is not None:
            assert getattr(layouts[0], kind)(*numbers) == layout_of(result, partitions)


@given(TOTALS, STEPS)
def test_lengths_are_those_of_layouts(totals, steps):
    """On a single rank every axis is a layout of one share."""
    for kind, operands, numbers, result in World(totals, steps).asked:
        if isinstance(result, Axis):
            layouts = [Layout.of(Partition((axis.total,))) for axis in operands]
            if kind == "joined":
                expected = Layout.joined(layouts)
            else:
                expected = getattr(layouts[0], kind)(*numbers)
            assert result.total == expected.total
        assert all(sum(a.length * b for a, b in x.leaves) == x.total for x in operands)


@given(TOTALS, STEPS, st.integers(0, 30), st.integers(0, 30))
def test_tying_does_not_depend_on_which_of_the_two_is_asked(totals, steps, i, j):
    results, shapes = [], []
    for turned in (False, True):
        world = World(totals, steps)
        pair = [world.axes[i % len(world.axes)], world.axes[j % len(world.axes)]]
        one, other = reversed(pair) if turned else pair
        results.append(one.tie(other))
        shapes.append([[(atom.length, block) for atom, block in x] for x in world.leaves])
    assert results[0] == results[1]
    assert shapes[0] == shapes[1]


@given(TOTALS, STEPS, st.integers(0, 30), st.integers(0, 30))
def test_tied_axes_have_the_same_atoms_for_good(totals, steps, i, j):
    world = World(totals, steps)
    one, other = world.axes[i % len(world.axes)], world.axes[j % len(world.axes)]
    before = world.leaves
    if not one.tie(other):
        assert world.leaves == before
        return
    assert one.leaves == other.leaves
    after = world.leaves
    assert one.tie(other)
    assert other.tie(one)
    assert world.leaves == after
    for kind, *step in [("cut", 1, 2), ("grouped", 0, 0), ("folded", 0, 0)]:
        world.step(kind, one, one, *step)
        assert one.leaves == other.leaves


@given(TOTALS, STEPS, st.sampled_from(KINDS[2:]), st.tuples(*[st.integers(0, 10**6)] * 4))
def test_what_cannot_be_done_leaves_everything_as_it_was(totals, steps, kind, numbers):
    world = World(totals, steps)
    before = [axis.leaves for axis in world.axes]
    a, b = (world.axes[number % len(world.axes)] for number in numbers[:2])
    world.step(kind, a, b, *numbers[2:])
    if world.asked[-1][3] in (None, False):
        assert [axis.leaves for axis in world.axes] == before


@given(TOTALS, STEPS, st.integers(0, 30), st.sampled_from([1, 2, 3, 4, 6]))
def test_grouping_is_the_inverse_of_scaling(totals, steps, i, block):
    world = World(totals, steps)
    axis = world.axes[i % len(world.axes)]
    before = axis.leaves
    assert axis.scaled(block).grouped(block).leaves == before
    grouped = axis.grouped(block)
    if grouped is not None:
        assert grouped.scaled(block).leaves == axis.leaves


@given(TOTALS, STEPS, st.integers(0, 30), st.integers(1, 6))
def test_folded_parts_are_cut_alike(totals, steps, i, parts):
    world = World(totals, steps)
    axis = world.axes[i % len(world.axes)]
    folded = axis.folded(parts)
    if folded is not None:
        assert Axis.joined([folded] * parts).leaves == axis.leaves


def lengths(axis: Axis) -> list[tuple[int, int]]:
    return [(atom.length, block) for atom, block in axis.leaves]


def test_cutting_one_of_two_tied_axes_cuts_the_other():
    one, other = Axis.fresh(8), Axis.fresh(8)
    assert one.tie(other)
    assert one.cut(0, 3) is not None
    assert lengths(other) == [(3, 1), (5, 1)]
    assert one.leaves == other.leaves


def test_a_concatenation_is_tied_piece_by_piece():
    """Where the pieces end, the other axis is cut."""
    a, b, whole = Axis.fresh(3), Axis.fresh(5), Axis.fresh(8)
    assert whole.tie(Axis.joined([a, b]))
    assert lengths(whole) == [(3, 1), (5, 1)]
    assert whole.leaves == a.leaves + b.leaves
    across = Axis.joined([Axis.fresh(4), Axis.fresh(4)])
    assert whole.tie(across)
    assert lengths(whole) == [(3, 1), (1, 1), (4, 1)]
    assert lengths(b) == [(1, 1), (4, 1)]


def test_blocks_meet_in_their_common_multiple():
    """Blocks of 2 and of 3 neighbours that start together end together every 6 indices."""
    twos, threes = Axis.fresh(6), Axis.fresh(4)
    assert twos.scaled(2).tie(threes.scaled(3))
    assert lengths(twos) == [(2, 3)]
    assert lengths(threes) == [(2, 2)]


def test_a_cut_inside_a_block_cannot_be():
    flat = Axis.fresh(3).scaled(4)
    assert flat.cut(0, 6) is None
    assert flat.cut(4, 10) is None
    assert lengths(flat) == [(3, 4)]
    assert lengths(flat.cut(4, 12)) == [(2, 4)]


def test_axes_of_other_lengths_cannot_be_tied():
    one, other = Axis.fresh(6), Axis.fresh(7)
    assert not one.tie(other)
    assert one.leaves != other.leaves


def test_an_axis_cannot_be_tied_to_itself_stretched():
    """Doubled channels and channels twice in a row: their order differs, nothing is cut."""
    axis = Axis.fresh(8)
    assert not axis.scaled(2).tie(Axis.joined([axis, axis]))
    assert lengths(axis) == [(8, 1)]


def test_an_axis_that_is_joined_with_itself_is_grouped_once():
    axis = Axis.fresh(12)
    twice = Axis.joined([axis, axis])
    assert twice.grouped(3).leaves == [(axis.leaves[0][0], 1)] * 2
    assert lengths(axis) == [(4, 3)]
    assert lengths(twice) == [(4, 3)] * 2


def test_channel_groups_across_pieces_cannot_be():
    joined = Axis.joined([Axis.fresh(3), Axis.fresh(5)])
    assert joined.grouped(4) is None
    assert lengths(joined) == [(3, 1), (5, 1)]


@pytest.mark.parametrize(("total", "parts"), [(7, 2), (8, 3)])
def test_parts_of_other_lengths_cannot_be_folded(total, parts):
    axis = Axis.fresh(total)
    assert axis.folded(parts) is None
    assert lengths(axis) == [(total, 1)]


def test_another_axis_may_be_cut_in_its_own_way():
    axis = Axis.fresh(6)
    other = axis.like(6)
    assert other.total == 6
    assert other.leaves != axis.leaves
    layout = Layout.of(apportion(6, (Fraction(1, 3), 1))).like(9)
    assert layout.total == 9
