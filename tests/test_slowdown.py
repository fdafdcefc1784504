"""Ranks that are slowed on purpose: by how much they computed, and with the same results."""

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, rank_loss, seeded
from helpers.running import TRAIN, hetmp_run, refused
from hetmp.cluster import slowdown
from hetmp.run.config import TrainConfig
from hetmp.run.train import train
from hetmp.slicing.recording import stopwatch


class Clock:
    """A processor that works when it is told to."""

    def __init__(self) -> None:
        self.cpu, self.now, self.slept = 0.0, 0.0, []

    def thread_time(self) -> float:
        return self.cpu

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def test_a_rank_sleeps_for_what_it_computed_and_not_for_exchanges(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(slowdown, "time", clock)
    slow, usual = slowdown.Slowdown(3.0), slowdown.Slowdown()
    for computed, exchanged in ((2.0, 1.0), (0.5, 4.0)):
        clock.cpu += computed
        slow.worked()
        usual.worked()
        clock.cpu += exchanged
        slow.resume()
        usual.resume()
    assert clock.slept == [4.0, 1.0]


def test_sleep_within_a_step_is_not_the_steps_time(monkeypatch):
    """As at the statistics of a batch norm, and at the sums of gradients."""
    clock = Clock()
    for module in (slowdown, stopwatch):
        monkeypatch.setattr(module, "time", clock)
    slow = slowdown.Slowdown(3.0)
    watch = stopwatch.Stopwatch(torch.device("cpu"), slow)
    watch.phase("work")
    clock.cpu += 2.0
    clock.now += 2.0
    slow.worked()
    watch.phase("after")
    assert (clock.now, slow.slept) == (6.0, 4.0)
    assert watch.times()["work"].forward == (2.0, 2.0)


def test_a_rank_that_slept_enough_goes_on(monkeypatch):
    """It is asked at every exchange and while it sleeps."""
    clock = Clock()
    monkeypatch.setattr(slowdown, "time", clock)
    slow = slowdown.Slowdown(3.0)
    slow.enough = lambda: clock.now > 1
    clock.cpu += 2.0
    slow.worked()
    assert 1 < clock.now < 1.2
    clock.cpu += 2.0
    slow.worked()
    assert 1 < clock.now < 1.2


@pytest.mark.mpi
def test_a_step_of_training_is_slowed_to_its_end(monkeypatch):
    """Also on one rank, which has no exchange."""
    worked = []
    monkeypatch.setattr(slowdown.Slowdown, "worked", lambda self: worked.append(self.factor))
    ranks = hetmp.Group().size
    config = TrainConfig(
        model="digits", data="digits", steps=2, slowdown=tuple([4.0] * ranks), no_verify=True
    )
    train(config)
    assert worked[-1] == 4.0
    assert len(worked) >= 2


@pytest.mark.mpi(min_size=2)
def test_every_exchange_waits_for_a_slow_rank(monkeypatch):
    """Forward and backward, and those at the entry."""
    worked = []
    monkeypatch.setattr(slowdown.Slowdown, "worked", lambda self: worked.append("worked"))
    model = hetmp.slice_model(seeded(network), [1.0] * hetmp.Group().size)
    rank_loss(model(batch((2, 3, 6, 6)).requires_grad_()), model.hetmp.group.rank).backward()
    moves = 2 * len(model.hetmp.exchanges) + 1
    assert len(worked) == 2 * moves  # where one starts and where one is waited for


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 1))


@pytest.mark.mpi
def test_a_slow_rank_changes_no_result():
    model = hetmp.slice_model(seeded(network), [1.0] * hetmp.Group().size)
    x, pacing = batch((2, 3, 6, 6)), model.hetmp.group.slowdown
    results = []
    for factor in (1.0, 2.0 + model.hetmp.group.rank):
        pacing.factor = factor
        model.zero_grad()
        output = model(x)
        rank_loss(output, model.hetmp.group.rank).backward()
        results.append([output, *(parameter.grad for parameter in model.parameters())])
    for usual, slowed in zip(*results, strict=True):
        assert torch.equal(usual, slowed)


def test_a_slowed_run_says_so(tmp_path):
    out = tmp_path / "run"
    done = hetmp_run(*TRAIN, "--steps", 2, "--slowdown", "1,2", "--out", out, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "ranks slowed on purpose by 1, 2" in done.stdout
    assert '"slowdown": [1.0, 2.0]' in (out / "metrics.jsonl").read_text().splitlines()[0]


def test_slowdowns_that_cannot_be():
    refused(hetmp_run(*TRAIN, "--slowdown", "1,2"), "2 slowdowns for 1 ranks", "one per rank")
    refused(hetmp_run(*TRAIN, "--slowdown", "0.5"), "slowdown 0.5 of rank 0")
    refused(hetmp_run(*TRAIN, "--slowdown", "nan"), "slowdown nan of rank 0")
