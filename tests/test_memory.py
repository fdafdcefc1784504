"""What slicing is for: a network that no rank has room for, and gathered inputs not kept.

How much memory a step takes is measured by ``benchmarks/memory.py``; here nothing is compared
with a measured figure.
"""

import math
import sys

import command_limited
import pytest
import torch
from memory_limited import DEPTH, WIDTH
from torch import nn

import hetmp
from helpers.running import PROGRAMS, hetmp_run
from hetmp.cluster import Group
from hetmp.exchange.arena import Arena

BUDGET = 3 * 4 * DEPTH * WIDTH**2 // 2
"""Bytes: half of the weights with their gradients and momentum."""


def train_in(budget, ranks):
    """Run the program that gives each rank *budget* bytes; malloc is to give back what is freed."""
    program = ("-m", "mpi4py", str(PROGRAMS / "memory_limited.py"))
    return hetmp_run(budget, ranks=ranks, module=program, cold=True, MALLOC_MMAP_THRESHOLD_="65536")


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on private memory is Linux's")
def test_what_one_rank_has_no_room_for_trains_on_three():
    alone = train_in(BUDGET, 1)
    assert alone.returncode != 0
    assert "can't allocate memory" in alone.stderr or "MemoryError" in alone.stderr, alone.stderr
    done = train_in(BUDGET, 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")
    assert math.isfinite(float(done.stdout.split()[1]))


def command_in(budget, ranks, *more):
    """Run ``hetmp train`` with so many bytes of private memory for each rank."""
    program = ("-m", "mpi4py", str(PROGRAMS / "command_limited.py"), str(budget))
    flags = ["--model", "command_limited:wide", "--data", "synthetic", "--shape", "1,2,2"]
    flags += ["--classes", 3, "--samples", 20, "--batch-size", 4, "--steps", 2, "--lr", 1e-4]
    flags += ["--momentum", 0, "--device", "cpu", *more]
    return hetmp_run(
        "train", *flags, ranks=ranks, module=program, cold=True, MALLOC_MMAP_THRESHOLD_="65536"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on private memory is Linux's")
def test_the_program_trains_layer_by_layer_what_no_rank_has_room_for():
    """With less memory than the weights alone take, which is half of what one rank needs."""
    weights = 4 * command_limited.DEPTH * command_limited.WIDTH**2
    budget = int(0.9 * weights)
    for ranks, flags in ((1, ["--layerwise"]), (3, [])):
        done = command_in(budget, ranks, *flags)
        assert done.returncode != 0, done.stdout
        assert "can't allocate memory" in done.stderr or "MemoryError" in done.stderr, done.stderr
    done = command_in(budget, 3, "--layerwise")
    assert done.returncode == 0, done.stderr
    assert "test accuracy after 2 steps on 3 ranks" in done.stdout


@pytest.fixture
def fresh():
    """A group whose arena has no slots yet."""
    group = Group()
    before = group.cache.pop("arena", None)
    yield group
    del group.cache["arena"]
    if before is not None:
        group.cache["arena"] = before


def kept_by(group, tuning):
    """Shared bytes that this rank has a use for between forward and backward."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 7, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(7 * 16, 5),
    )
    model = hetmp.slice_model(module, [3, 1, 0, 2, 1][: group.size], tuning=tuning)
    y = model(torch.randn(2, 3, 4, 4))
    arena = Arena.of(group)
    assert arena is not None
    assert arena.size > 0
    kept = arena.in_use
    y.sum().backward()
    assert arena.in_use == 0
    return kept


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
def test_gathered_inputs_are_kept_for_the_backward_pass_unless_regathered(fresh, overlap):
    if Arena.of(fresh) is None:
        pytest.skip("the ranks share no memory")
    assert kept_by(fresh, hetmp.Tuning(overlap=overlap, regather=True)) == 0
    kept = kept_by(fresh, hetmp.Tuning(overlap=overlap))
    # Where a rank has no channels, there is no layer that keeps its input.
    assert (kept > 0) == ([3, 1, 0, 2, 1][fresh.rank] > 0)
