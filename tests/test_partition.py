"""Partitions, layouts and apportionment: the arithmetic of who holds which channels."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout, Partition, Piece, apportion, checked_weights

TOTALS = st.integers(0, 3000)
ANY_WEIGHT = st.one_of(
    st.integers(0, 10**6),
    st.just(0.0),
    st.floats(min_value=1e-300, max_value=1e300),
    st.fractions(min_value=0, max_value=1000),
)


def some_weights(weight: st.SearchStrategy = ANY_WEIGHT) -> st.SearchStrategy:
    """1 to 8 weights, at least one of them above 0."""
    return st.lists(weight, min_size=1, max_size=8).filter(any)


def quotas(total: int, weights: list) -> list[Fraction]:
    exact = [Fraction(weight) for weight in weights]
    return [total * weight / sum(exact) for weight in exact]


# --- apportion without options ------------------------------------------------------------------


@given(TOTALS, some_weights())
@example(60, [50, 50, 50])  # the paper's published code loops for ever here
@example(60, [50, 30, 10])
@example(1, [1e308, 5e-324])
@example(7, [1e-320] * 8)
@example(10**18 + 1, [1, 1, 1])  # too large for floating-point quotas
def test_shares_sum_exactly_and_are_within_one_of_the_quota(total, weights):
    counts = apportion(total, weights).counts
    assert sum(counts) == total
    assert len(counts) == len(weights)
    for count, quota in zip(counts, quotas(total, weights), strict=True):
        assert abs(count - quota) < 1


@given(TOTALS, some_weights())
def test_a_weight_of_zero_gets_nothing(total, weights):
    for count, weight in zip(apportion(total, weights).counts, weights, strict=True):
        if weight == 0:
            assert count == 0


@given(TOTALS, some_weights(), st.data())
def test_raising_a_ranks_own_weight_never_lowers_its_share(total, weights, data):
    rank = data.draw(st.integers(0, len(weights) - 1))
    more = data.draw(st.one_of(st.integers(0, 100), st.floats(0, 1e12)))
    raised = [Fraction(w) + (Fraction(more) if r == rank else 0) for r, w in enumerate(weights)]
    assert apportion(total, raised).counts[rank] >= apportion(total, weights).counts[rank]


@given(TOTALS, some_weights(st.integers(0, 100)), st.integers(0, 7), st.integers(1, 3))
def test_raising_a_small_weight_never_lowers_its_share(total, weights, rank, more):
    """Small whole weights meet many ties, which weights drawn at large seldom do."""
    rank %= len(weights)
    raised = [weight + more * (r == rank) for r, weight in enumerate(weights)]
    assert apportion(total, raised).counts[rank] >= apportion(total, weights).counts[rank]


@given(TOTALS, some_weights(), st.fractions(min_value=Fraction(1, 10**6), max_value=10**6))
def test_only_ratios_matter(total, weights, scale):
    assume(scale > 0)
    scaled = [Fraction(weight) * scale for weight in weights]
    assert apportion(total, scaled) == apportion(total, weights)


@given(TOTALS, st.integers(1, 8), st.sampled_from([1, 0.1, 50, 1e-300, 1e300]))
def test_ties_go_to_the_lower_ranks(total, ranks, weight):
    share, extra = divmod(total, ranks)
    expected = tuple(share + (rank < extra) for rank in range(ranks))
    assert apportion(total, [weight] * ranks).counts == expected


@pytest.mark.parametrize(
    ("total", "weights", "counts"),
    [
        (60, (70, 25, 5), (42, 15, 3)),
        (60, (50, 50, 50), (20, 20, 20)),
        (61, (50, 50, 50), (21, 20, 20)),
        (60, (50, 30, 10), (33, 20, 7)),  # quotas 33.3, 20, 6.7
        (2, (1, 1, 1, 1, 1), (1, 1, 0, 0, 0)),
        (0, (1, 2), (0, 0)),
        (7, (3,), (7,)),
        (10, (0, 1, 0), (0, 10, 0)),
        (13, (1, 2, 3, 4, 5, 6, 7, 8), (0, 1, 1, 1, 2, 2, 3, 3)),
    ],
)
def test_known_shares(total, weights, counts):
    assert apportion(total, weights).counts == counts


def test_hugely_unlike_weights():
    assert apportion(10, (1e308, 5e-324)).counts == (10, 0)
    assert apportion(10**6, (10**400, 10**400)).counts == (500_000, 500_000)
    assert apportion(10**15, (1, 10**14)).counts == (10, 10**15 - 10)


def test_weights_may_be_any_kind_of_real_number():
    expected = apportion(60, (70, 25, 5))
    assert apportion(60, np.array([70, 25, 5], dtype=np.int32)) == expected
    assert apportion(np.int64(60), np.array([0.70, 0.25, 0.05], dtype=np.float32)) == expected
    assert apportion(60, [Fraction(70), 25.0, np.float64(5)]) == expected
    assert apportion(60, np.array([2**62, 2**62, 2**62])).counts == (20, 20, 20)


# --- options ------------------------------------------------------------------------------------


@given(
    st.integers(0, 300),
    some_weights(),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(0, 20),
)
@example(4, [1, 1, 1, 1], 1, 1)
@example(12, [1000, 1, 1], 4, 3)
def test_options_are_respected_or_refused(units, weights, multiple_of, at_least):
    total = units * multiple_of
    working = sum(weight > 0 for weight in weights)
    floor = math.ceil(at_least / multiple_of) * multiple_of
    if floor * working > total:
        with pytest.raises(ValueError, match=f"at least {at_least}"):
            apportion(total, weights, multiple_of=multiple_of, at_least=at_least)
        return
    counts = apportion(total, weights, multiple_of=multiple_of, at_least=at_least).counts
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert count % multiple_of == 0
        assert count >= at_least if weight > 0 else count == 0


@given(st.integers(0, 300), some_weights(), st.integers(0, 20))
def test_a_floor_moves_no_more_than_it_must(total, weights, at_least):
    """Where every share is above the floor anyway, the floor changes nothing."""
    plain = apportion(total, weights)
    if all(
        quota >= at_least for quota, w in zip(quotas(total, weights), weights, strict=True) if w
    ):
        assert apportion(total, weights, at_least=at_least) == plain


def test_those_above_the_floor_share_what_is_left_in_proportion():
    assert apportion(100, (60, 30, 1, 0), at_least=10).counts == (60, 30, 10, 0)
    assert apportion(64, (70, 25, 5), multiple_of=8).counts == (48, 16, 0)
    assert apportion(64, (70, 25, 5), multiple_of=8, at_least=1).counts == (40, 16, 8)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ([], "no weights"),
        ([0, 0, 0], "0, 0, 0"),
        ([1, -2, 3], "-2 of rank 1"),
        ([1, math.nan], "nan of rank 1"),
        ([math.inf, 1], "inf of rank 0"),
        ([1, -math.inf], "-inf of rank 1"),
        (["fast", 1], "'fast' of rank 0"),
        (["1", "2"], "'1' of rank 0"),
        ("123", "'1' of rank 0"),
        ([1, None], "None of rank 1"),
        ([1, 1j], "1j of rank 1"),
        ([1, [2]], r"\[2\] of rank 1"),
    ],
)
def test_weights_that_cannot_be_used_are_named(weights, named):
    with pytest.raises(HetmpError, match=named):
        apportion(10, weights)


def test_errors_are_value_errors():
    with pytest.raises(ValueError, match="nan"):
        apportion(10, [math.nan, 1])


def test_one_weight_per_rank():
    with pytest.raises(HetmpError, match=r"2 weights \(70, 30\) for 3 ranks.*start 2 ranks"):
        checked_weights([70, 30], ranks=3)
    assert checked_weights([0.5, 1], ranks=2) == (Fraction(1, 2), Fraction(1))


@pytest.mark.parametrize("total", [-1, 2.5, "60", None, True, math.nan, math.inf])
def test_the_total_is_a_whole_number(total):
    with pytest.raises(HetmpError, match="total is a whole number, 0 or more, got"):
        apportion(total, (1, 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"multiple_of": 0}, "multiple_of is a whole number, 1 or more, got 0"),
        ({"multiple_of": -4}, "multiple_of .* got -4"),
        ({"multiple_of": 1.5}, "multiple_of .* got 1.5"),
        ({"multiple_of": 7}, "60 .* multiples of 7"),
        ({"at_least": -1}, "at_least is a whole number, 0 or more, got -1"),
        ({"at_least": 21}, "60 channels cannot give 3 ranks at least 21"),
        ({"at_least": 13, "multiple_of": 12}, "at least 13 each in multiples of 12"),
    ],
)
def test_options_that_cannot_be_met_are_named(options, named):
    with pytest.raises(HetmpError, match=named):
        apportion(60, (1, 2, 3), **options)


# --- partitions and layouts ---------------------------------------------------------------------

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(COUNTS)
@example([0, 0])
@example([7, 0, 13, 0])
def test_a_partitions_slices_cover_the_axis_in_order(counts):
    partition = Partition(tuple(counts))
    slices = [partition.slice(rank) for rank in range(partition.ranks)]
    covered = [i for piece in slices for i in range(piece.start, piece.stop)]
    assert covered == list(range(partition.total))
    assert [piece.stop - piece.start for piece in slices] == counts


@st.composite
def layouts(draw):
    ranks = draw(st.integers(1, 6))
    counts = st.tuples(*[st.integers(0, 11)] * ranks)
    pieces = draw(st.lists(st.tuples(counts, st.integers(1, 5)), min_size=1, max_size=4))
    return Layout(tuple(Piece(Partition(each), block) for each, block in pieces))


def indices(layout, rank):
    return [i for piece in layout.slices(rank) for i in range(piece.start, piece.stop)]


@given(layouts())
def test_a_layouts_shares_are_disjoint_and_cover_the_axis(layout):
    shares = [indices(layout, rank) for rank in range(layout.ranks)]
    assert [len(share) for share in shares] == list(layout.counts)
    assert sorted(i for share in shares for i in share) == list(range(layout.total))
    assert all(share == sorted(share) for share in shares)
    assert all(len(layout.slices(rank)) == len(layout.pieces) for rank in range(layout.ranks))


@given(layouts(), st.integers(1, 6))
def test_a_scaled_layout_holds_the_neighbours_of_each_index(layout, block):
    scaled = layout.scaled(block)
    for rank in range(layout.ranks):
        expected = [i * block + k for i in indices(layout, rank) for k in range(block)]
        assert indices(scaled, rank) == expected


# --- what becomes of a layout, against lists of who holds each index ------------------------------


def owners(layout):
    """The rank that holds each index."""
    held = {i: rank for rank in range(layout.ranks) for i in indices(layout, rank)}
    return [held[i] for i in range(layout.total)]


def of_owners(ranks, held):
    """A layout whose every index is a piece of its own."""
    each = (tuple(int(rank == owner) for rank in range(ranks)) for owner in held)
    return Layout(tuple(Piece(Partition(counts)) for counts in each))


@given(layouts(), layouts())
def test_layouts_that_give_every_index_to_the_same_rank_are_equal(a, b):
    assert (a == b) == (a.ranks == b.ranks and owners(a) == owners(b))
    if a.total:
        same = of_owners(a.ranks, owners(a))
        assert a == same
        assert hash(a) == hash(same)
    assert a != owners(a)


@given(st.data())
def test_a_joined_layout_is_one_after_the_other(data):
    a, b = data.draw(layouts()), data.draw(layouts())
    if a.ranks == b.ranks:
        assert owners(Layout.joined([a, b, a])) == owners(a) + owners(b) + owners(a)
    assert Layout.joined([a]) == a


@given(layouts(), st.data())
def test_a_part_of_a_layout_is_held_by_the_same_ranks(layout, data):
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, layout.total)] * 2)))
    cut = layout.cut(start, stop)
    assert owners(cut) == owners(layout)[start:stop]
    assert cut.ranks == layout.ranks
    for rank in range(layout.ranks):
        mine = indices(layout, rank)
        assert mine[layout.within(rank, start, stop)] == [i for i in mine if start <= i < stop]


@given(layouts(), st.integers(1, 6))
def test_a_grouped_layout_holds_whole_groups(layout, size):
    grouped = layout.grouped(size)
    held = [owners(layout)[i : i + size] for i in range(0, layout.total, size)]
    if grouped is not None:
        assert all(len(set(group)) == 1 for group in held)
        assert owners(grouped) == [group[0] for group in held]
        assert grouped.scaled(size) == layout
    else:
        lengths = [
            piece.stop - piece.start for r in range(layout.ranks) for piece in layout.slices(r)
        ]
        assert any(length % size for length in lengths)
    assert layout.scaled(size).grouped(size) == layout


@given(layouts(), st.integers(1, 5))
def test_a_folded_layout_is_that_of_every_part(layout, parts):
    size = layout.total // parts
    held = [owners(layout)[i * size : (i + 1) * size] for i in range(parts)]
    folded = layout.folded(parts)
    if layout.total % parts or any(part != held[0] for part in held):
        assert folded is None
    else:
        assert owners(folded) == held[0]
    if layout.total:
        assert Layout.joined([layout] * parts).folded(parts) == layout


@given(layouts(), st.integers(0, 60))
def test_a_layout_like_another_is_shared_in_the_same_proportion(layout, total):
    if layout.total:
        assert layout.like(total) == Layout.of(apportion(total, layout.counts))


def test_known_layouts():
    assert Partition((4, 7)).slice(1) == slice(4, 11)
    assert Layout.of(Partition((1, 0, 2)), block=4).slices(2) == (slice(4, 12),)
    concatenated = Layout((Piece(Partition((1, 2))), Piece(Partition((3, 0)), 2)))
    assert concatenated.slices(0) == (slice(0, 1), slice(3, 9))
    assert concatenated.slices(1) == (slice(1, 3), slice(9, 9))
    assert (concatenated.counts, concatenated.total, concatenated.ranks) == ((7, 2), 9, 2)


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ((), "at least one rank"),
        ((3, -1), "rank 1 -1"),
        ((1.5, 2), "rank 0 1.5"),
        ((True, 2), "rank 0 True"),
        ((1, math.nan), "rank 1 nan"),
        (("a", 1), "rank 0 'a'"),
    ],
)
def test_counts_that_are_none_are_refused(counts, named):
    with pytest.raises(HetmpError, match=named):
        Partition(counts)


def test_layouts_that_are_none_are_refused():
    with pytest.raises(HetmpError, match="block is at least 1, got 0"):
        Piece(Partition((1,)), 0)
    with pytest.raises(HetmpError, match=r"pieces over \[1, 2\]"):
        Layout((Piece(Partition((1,))), Piece(Partition((1, 2)))))
    with pytest.raises(HetmpError, match="pieces"):
        Layout(())
