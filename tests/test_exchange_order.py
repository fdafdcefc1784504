"""Ranks that enter different exchanges end in words that name both, and not in a hang."""

import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.running import PROGRAMS, hetmp_run, refused
from hetmp.cluster import AgreedError
from hetmp.cluster.recorder import (
    COLUMNS,
    ENDED,
    INSIDE,
    KEPT,
    ExchangeRecorder,
    checksum,
    first_difference,
    marks,
)
from hetmp.cluster.watchdog import HANG_SECONDS, hang_seconds
from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL, PARTIAL
from hetmp.exchange.moves import Counter, start

# --- what a rank notes ---------------------------------------------------------------------------


def test_an_entry_says_what_it_is():
    recorder = ExchangeRecorder(0, 2)
    entry = recorder.note("Allgatherv", "the output of conv1", "forward", 14076)
    assert str(entry) == "0: Allgatherv of the output of conv1, forward, 14,076 bytes"
    assert str(recorder.note("Bcast")) == "1: Bcast"


def test_a_rank_is_in_the_innermost_exchange_that_it_has_entered():
    recorder = ExchangeRecorder(0, 2)
    outer, inner = recorder.note("Allreduce"), recorder.note("Allgather")
    assert recorder.inside is None
    with outer:
        with inner:
            assert recorder.inside is inner
        assert recorder.inside is outer and inner.finished
        turn = recorder.turn
    assert recorder.inside is None and recorder.turn != turn
    with pytest.raises(KeyError), inner:
        raise KeyError
    assert recorder.inside is None and not inner.finished


def test_the_last_exchanges_are_remembered_newest_first():
    recorder = ExchangeRecorder(0, 2)
    entries = [recorder.note("Bcast") for _ in range(KEPT + 9)]
    assert recorder.uncompared() == entries[9:]
    with entries[-2]:
        pass
    assert recorder.before(entries[-1]).startswith(f"{entries[-2]}; {entries[-3]} (begun); ")
    assert recorder.before(entries[9]) == "none"
    recorder.compared = entries[-3].number
    assert recorder.uncompared() == entries[-2:]


def noted(*words):
    recorder = ExchangeRecorder(0, 2)
    return [recorder.note(name, size=size) for name, size in words]


def test_order_size_and_name_are_compared():
    same = ("Bcast", 8), ("Allreduce", 4)
    assert checksum(noted(*same)) == checksum(noted(*same))
    for other in (same[::-1], (*same, ("Bcast", 0)), (same[0], ("Allreduce", 5)), (same[0],)):
        assert checksum(noted(*other)) != checksum(noted(*same))


def test_the_first_difference_is_where_any_rank_differs_from_rank_0():
    own = marks(noted(("Bcast", 8), ("Bcast", 8), ("Bcast", 8)))
    everyones = np.stack([own] * 4)
    everyones[2, 1, 1] = everyones[3, 2, 0] = everyones[1, 2, 0] = 5
    assert first_difference(everyones) == (1, 2)


def test_a_rank_sees_where_the_others_are():
    table = memoryview(np.zeros(4 * COLUMNS, dtype=np.int64))
    ranks = [ExchangeRecorder(rank, 4) for rank in range(4)]
    assert ranks[0].others() == ""
    for recorder in ranks:
        recorder.table = table
        entry = recorder.note("Bcast", size=2000 if recorder.rank == 3 else 0)
        with entry:
            pass
    ranks[1].publish(ENDED)
    ranks[3].publish(INSIDE)
    assert ranks[3].others() == (
        "ranks 0 and 2 are in no exchange, the last was 0; "
        "rank 1 is at the end of the program, the last exchange was 0; "
    )
    assert "rank 3 is in exchange 0 of 2,000 bytes; " in ranks[0].others()


@pytest.mark.parametrize(("text", "seconds"), [("", HANG_SECONDS), ("0", 0), ("2.5", 2.5)])
def test_how_long_a_rank_waits_can_be_set(monkeypatch, text, seconds):
    monkeypatch.setenv("HETMP_HANG_SECONDS", text)
    assert hang_seconds() == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_what_is_no_number_of_seconds_is_refused(monkeypatch, text):
    monkeypatch.setenv("HETMP_HANG_SECONDS", text)
    with pytest.raises(HetmpError, match=f"HETMP_HANG_SECONDS={text} is not a number of seconds"):
        hang_seconds()


# --- the first steps are compared ----------------------------------------------------------------


@pytest.fixture
def model():
    """A model on a communicator of its own, whose ranks have entered nothing yet."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3))
    yield hetmp.slice_model(module, [1] * comm.size, comm=comm)
    comm.Free()


def step(model):
    model(torch.ones(2, 1, 6, 6)).sum().backward()


@pytest.mark.mpi(min_size=2)
def test_in_the_first_step_an_exchange_of_another_size_is_not_entered(model):
    group = model.hetmp.group
    step(model)
    x = torch.ones(2111 if group.rank == group.size - 1 else 3519)
    with pytest.raises(AgreedError) as refusal:
        start(group, x, PARTIAL, FULL, Counter(), value="numbers", direction="backward")
    last = rf"rank {group.size - 1} enters exchange \d+: Allreduce of numbers, backward, 8,444 b"
    assert refusal.match(last + r"ytes; rank 0 enters exchange \d+: Allreduce .* 14,076 bytes; all")


@pytest.mark.mpi(min_size=2)
def test_the_order_of_a_later_step_is_compared_when_the_next_begins(model):
    group = model.hetmp.group
    step(model)
    step(model)
    names = ["Allreduce", "Bcast"]
    for name in names[::-1] if group.rank == group.size - 1 else names:
        with group.record(name):
            pass
    with pytest.raises(AgreedError) as refusal:
        step(model)
    refusal.match(rf"rank {group.size - 1} enters exchange (\d+): Bcast; rank 0 .* \1: Allreduce;")


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_has_entered_an_exchange_less_is_refused(model):
    group = model.hetmp.group
    step(model)
    step(model)
    if group.is_root:
        with group.record("Allreduce"):
            pass
    with pytest.raises(AgreedError, match=r"rank 1 enters exchange .*; rank 0 .*: Allreduce;"):
        step(model)


@pytest.mark.mpi(min_size=2)
def test_later_steps_are_not_compared(model):
    for _ in range(4):
        step(model)
    recorder = model.hetmp.group.recorder
    compared = recorder.compared
    step(model)
    assert recorder.compared == compared and not recorder.comparing


# --- a rank that does not come -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("sleeps", "rank 1 is in no exchange, the last was"),
        ("ends", "rank 1 is at the end of the program, the last exchange was"),
    ],
)
def test_a_rank_that_leaves_its_loop_early_ends_the_job_in_words(how, where):
    """The other waits in the next step, and shows what went before."""
    program = (str(PROGRAMS / "leaving_early.py"), how)
    done = hetmp_run(ranks=2, module=program, HETMP_HANG_SECONDS="3")
    said = refused(done, "rank 0 of 2", "has waited 3 s in exchange", where)
    assert "leaving_early.py, line" in said
    assert "Reduce_scatter of the output of 2, backward, 3,456 bytes" in said
    assert "HETMP_HANG_SECONDS" in said


@pytest.mark.parametrize("module", [(), ("-m", "mpi4py")])
def test_a_rank_that_raises_alone_ends_the_job(module):
    """Whether it is started as the docs say or not."""
    program = (*module, str(PROGRAMS / "leaving_early.py"), "raises")
    done = hetmp_run(ranks=2, module=program, timeout=60)
    assert done.returncode != 0
    assert "rank 1 does not go on" in done.stderr and "has waited" not in done.stderr


def test_every_rank_that_waits_says_so():
    program = (str(PROGRAMS / "leaving_early.py"), "sleeps")
    done = hetmp_run(ranks=3, module=program, HETMP_HANG_SECONDS="3")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "hetmp: error:" in line]
    assert sorted(line.split()[3] for line in said) == ["0", "1"]


def test_a_rank_that_may_be_late_is_waited_for():
    program = (str(PROGRAMS / "leaving_early.py"), "comes late")
    done = hetmp_run(ranks=2, module=program, HETMP_HANG_SECONDS="0")
    assert (done.returncode, done.stderr) == (0, "")
    done = hetmp_run(ranks=2, module=program, HETMP_HANG_SECONDS="for ever")
    assert done.returncode != 0 and "HETMP_HANG_SECONDS=for ever is not a number" in done.stderr
