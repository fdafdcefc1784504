"""Whole tensors to slices and back, outside autograd: parameters handed out and collected."""

import pytest
import torch

from helpers.exchange_reference import layouts, numbers, put_together, share
from hetmp.cluster import Group
from hetmp.core.state import FULL, Sliced
from hetmp.exchange import collect, distribute
from hetmp.exchange import whole_tensors as tensors

pytestmark = [pytest.mark.mpi, pytest.mark.every_size]


@pytest.fixture(scope="module")
def group():
    return Group()


WHOLE = [
    ((11, 3), 0, torch.float64),
    ((3, 11, 2), 1, torch.float32),
    ((11,), 0, torch.int64),
    ((2, 11), -1, torch.bfloat16),
    ((11,), 0, torch.bool),
]


@pytest.mark.parametrize("limit", [3, 64, 2**30])
@pytest.mark.parametrize(("shape", "axis", "dtype"), WHOLE)
def test_whole_tensors_are_handed_out_and_collected(group, shape, axis, dtype, limit, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_BYTES", limit)
    for name in ("uneven", "zeros", "all-on-last", "pieces"):
        layout = layouts(group.size)[name]
        sizes = list(shape)
        sizes[axis] = layout.total
        state = Sliced(layout, axis)
        whole = numbers(sizes, 1, dtype)
        mine = share(whole, state, group.rank)
        into = torch.zeros_like(mine)
        distribute(group, whole if group.is_root else None, into, state)
        assert torch.equal(into, mine)
        for root in (None, 0, group.size - 1):
            given = collect(group, mine, whole.shape, state, root)
            assert (given is None) == (root is not None and root != group.rank)
            if given is not None:
                assert torch.equal(given, whole)
                assert given.dtype == dtype


@pytest.mark.parametrize("limit", [3, 2**30])
def test_what_all_hold_alike_comes_from_one_rank(group, limit, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_BYTES", limit)
    for dtype in (torch.float64, torch.int64):
        for shape in ((), (2, 3)):
            whole = numbers(shape, group.rank, dtype)
            into = torch.zeros_like(whole)
            distribute(group, whole, into, FULL)
            assert torch.equal(into, numbers(shape, 0, dtype))
            assert torch.equal(collect(group, whole, whole.shape, FULL, None), into)
            last = group.size - 1
            given = collect(group, whole, whole.shape, FULL, last)
            if group.rank == last:
                assert torch.equal(given, numbers(shape, last, dtype))
            else:
                assert given is None


def test_whole_tensors_of_no_particular_layout_in_memory(group):
    layout = layouts(group.size)["uneven"]
    state = Sliced(layout)
    whole = numbers((4, layout.total, 2, 3), 1).contiguous(memory_format=torch.channels_last)
    into = torch.zeros_like(share(whole, state, group.rank))
    into = into.contiguous(memory_format=torch.channels_last)
    distribute(group, whole, into, state)
    everyone = [share(whole, state, rank) for rank in range(group.size)]
    assert torch.equal(into, everyone[group.rank])
    collected = collect(group, into, whole.shape, state, None)
    assert torch.equal(collected, put_together(everyone, state, whole.shape))
