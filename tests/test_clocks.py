"""The ranks' clocks are compared by messages."""

import time

import pytest

from helpers.saving import world
from hetmp.cluster import Group, clock_offset


@pytest.mark.every_size
@pytest.mark.mpi
def test_ranks_of_one_host_have_one_clock():
    offset = clock_offset(Group(world()))
    assert abs(offset.seconds) <= offset.error
    assert (offset.error == 0) == (world().rank == 0)


@pytest.mark.every_size
@pytest.mark.mpi
def test_what_a_clock_is_ahead_is_found():
    ahead = 100.0 * world().rank - 3 * (world().rank == 2)
    offset = clock_offset(Group(world()), lambda: time.perf_counter() + ahead)
    assert abs(offset.seconds - ahead) <= offset.error + 1e-9
