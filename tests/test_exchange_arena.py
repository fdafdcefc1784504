"""Shared memory for exchanges: which slot is taken when, and that nobody writes where one reads."""

import gc

import pytest
import torch

from helpers.exchange_reference import held, layouts, moved, numbers
from hetmp.cluster import Group
from hetmp.core.state import FULL, PARTIAL, Sliced
from hetmp.exchange import Carriage, Exchange, arena, tidy
from hetmp.exchange import shared as through_memory
from hetmp.exchange.arena import MAX_MEETINGS, Arena

pytestmark = [pytest.mark.mpi, pytest.mark.every_size]

BORROWED = Carriage(borrowed=True)


@pytest.fixture
def fresh():
    """A group whose arena has no slots yet."""
    group = Group()
    before = group.cache.pop("arena", None)
    yield group
    del group.cache["arena"]
    if before is not None:
        group.cache["arena"] = before


def shared(group: Group) -> int:
    """How many exchanges of a page each the arena has room for."""
    found = Arena.of(group)
    return found.size // 4096 if found else 0


def gather(group: Group, seed: int, size: int = 2):
    """A borrowed gather, and what it should give."""
    layout = layouts(group.size)["uneven"]
    shape, source = (size, layout.total, 3), Sliced(layout)
    values = [held(source, shape, rank, seed) for rank in range(group.size)]
    y = Exchange(group, source, FULL)(values[group.rank], BORROWED)
    return y, moved(values, source, FULL, shape, group.rank)


@pytest.mark.mpi(min_size=2)
def test_all_ranks_read_the_same_memory(fresh):
    y, expected = gather(fresh, 1)
    assert torch.equal(y, expected)
    fresh.comm.Barrier()
    if fresh.rank == 0:
        y[0, 0, 0] = 77
    fresh.comm.Barrier()
    assert y[0, 0, 0] == 77


@pytest.mark.mpi(min_size=2)
def test_a_slot_is_used_again_when_every_rank_let_it_go(fresh):
    for step in range(20):
        y, expected = gather(fresh, step)
        assert torch.equal(y, expected)
        del y
    assert shared(fresh) <= 2


@pytest.mark.mpi(min_size=2)
def test_what_one_rank_still_holds_is_not_written_to(fresh):
    """The last rank keeps every result of some steps; the others keep none."""
    kept = []
    for step in range(12):
        y, expected = gather(fresh, step)
        if fresh.rank == fresh.size - 1 and step % 3 == 0:
            kept.append((y, expected))
        del y
    assert all(torch.equal(y, expected) for y, expected in kept)
    many = shared(fresh)
    kept.clear()
    gc.collect()
    for step in range(12):
        gather(fresh, step)
    assert shared(fresh) == many


@pytest.mark.mpi(min_size=2)
def test_a_smaller_exchange_takes_the_memory_of_a_larger_one(fresh):
    y, _ = gather(fresh, 1, 4000)
    largest = shared(fresh)
    del y
    for size in (2000, 4000, 1000, 3000, 4000):
        y, expected = gather(fresh, 1, size)
        assert torch.equal(y, expected)
        del y
    assert shared(fresh) <= 3 * largest  # one in use, one that nobody has heard is free, a gap


@pytest.mark.mpi(min_size=2)
def test_growing_exchanges_take_little_more_than_the_largest(fresh):
    """Each is larger than every gap that was left before."""
    for _ in range(3):
        for size in range(1000, 9000, 1000):
            y, expected = gather(fresh, size, size)
            assert torch.equal(y, expected)
            del y
    largest = -(-expected.numel() * 8 // 4096)
    assert shared(fresh) <= 3 * largest  # one in use, one that nobody has heard is free, a gap


@pytest.mark.mpi(min_size=2)
def test_what_nobody_uses_is_taken_back_before_a_pass(fresh):
    """Without it, every second gather would lie behind the one before."""
    kept = None
    for step in range(4):
        tidy(fresh)
        y, expected = gather(fresh, step, 1000)
        assert torch.equal(y, expected)
        if step == 1 and fresh.rank == fresh.size - 1:
            kept = y, expected
        del y
        assert shared(fresh) == -(-expected.numel() * 8 // 4096) * (1 if step < 2 else 2)
    assert kept is None or torch.equal(*kept)


@pytest.mark.mpi(min_size=2)
def test_a_large_reduce_scatter_goes_in_rounds(fresh, monkeypatch):
    monkeypatch.setattr(through_memory, "ROUND_BYTES", 100)
    for name, layout in layouts(fresh.size).items():
        shape = (7, layout.total, 3)
        given = [numbers(shape, rank) for rank in range(fresh.size)]
        target = Sliced(layout)
        for start in (False, True):
            exchange = Exchange(fresh, PARTIAL, target)
            mine = given[fresh.rank]
            y = exchange.start(mine).wait() if start else exchange(mine)
            assert torch.equal(y, moved(given, PARTIAL, target, shape, fresh.rank)), name
    found = Arena.of(fresh)
    assert found._begun > 7 * len(layouts(fresh.size))
    assert found.in_use == 0


@pytest.mark.mpi(min_size=2)
def test_more_meetings_than_there_may_be_go_by_collectives(fresh):
    layout = layouts(fresh.size)["uneven"]
    shape, source = (2, layout.total), Sliced(layout)
    exchange = Exchange(fresh, source, FULL)
    for _ in range(3):
        values = [[held(source, shape, r, s) for r in range(fresh.size)] for s in range(7)]
        pending = [exchange.start(value[fresh.rank], BORROWED) for value in values]
        assert shared(fresh) <= 2 * MAX_MEETINGS  # the word of what is free comes a meeting later
        for value, one in zip(reversed(values), reversed(pending), strict=True):
            assert torch.equal(one.wait(), moved(value, source, FULL, shape, fresh.rank))


@pytest.mark.mpi(min_size=2)
def test_without_room_for_it_an_exchange_goes_by_collectives(fresh, monkeypatch):
    monkeypatch.setattr(arena, "_room", lambda group: 0)
    y, expected = gather(fresh, 1)
    assert torch.equal(y, expected)
    assert Arena.of(fresh) is None
    fresh.cache.pop("arena")
    monkeypatch.undo()
    assert Arena.of(fresh) is not None
    monkeypatch.setattr(arena, "_room", lambda group: 0)
    layout = layouts(fresh.size)["zeros"]
    given = [numbers((2, layout.total), rank) for rank in range(fresh.size)]
    scattered = Exchange(fresh, PARTIAL, Sliced(layout))(given[fresh.rank])
    expected = moved(given, PARTIAL, Sliced(layout), (2, layout.total), fresh.rank)
    assert torch.equal(scattered, expected)
    assert shared(fresh) == 0


def test_models_of_one_communicator_share_an_arena():
    assert Arena.of(Group()) is Arena.of(Group())
