"""Which rank runs where: ranks of a host become neighbours, and each keeps what it was told."""

import importlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from helpers.saving import shared, world
from hetmp.cluster import Group, arranged, side_by_side
from hetmp.cluster.placement import RankPlace, placement_table, show_placement
from hetmp.core.partition import apportion
from hetmp.run.config import train_config

HOSTS = st.lists(st.integers(0, 5), min_size=1, max_size=12).map(
    lambda hosts: tuple(hosts.index(host) for host in hosts)
)
"""By rank, the first rank on the same host."""


# --- the order of ranks ---------------------------------------------------------------------------


@given(HOSTS)
def test_ranks_of_a_host_are_brought_together(hosts):
    order = side_by_side(hosts)
    assert sorted(order) == list(range(len(hosts)))
    assert order[0] == 0
    arranged_hosts = [hosts[rank] for rank in order]
    parts = [host for host, before in zip(arranged_hosts, [None, *arranged_hosts], strict=False)
             if host != before]  # fmt: skip
    assert len(parts) == len(set(hosts))
    for host in parts:
        ranks = [rank for rank in order if hosts[rank] == host]
        assert ranks == sorted(ranks)


@given(HOSTS)
def test_ranks_that_are_in_order_stay(hosts):
    in_order = tuple(hosts[rank] for rank in side_by_side(hosts))
    firsts = tuple(in_order.index(host) for host in in_order)
    assert side_by_side(firsts) == tuple(range(len(hosts)))


def test_what_is_told_by_rank_follows_the_rank():
    config = train_config(model="digits", data="digits", weights=(5, 1, 3), slowdown=(1, 2, 4))
    moved = config.in_order((0, 2, 1))
    assert (moved.weights, moved.slowdown) == ((5, 3, 1), (1, 4, 2))
    assert moved.model_copy(update={"weights": config.weights, "slowdown": config.slowdown}) == (
        config
    )
    for weights in ("equal", "auto", None, (5, 1)):  # those of another number are refused later
        config = train_config(model="digits", data="digits", weights=weights)
        assert config.in_order((0, 2, 1)) == config


@pytest.fixture
def dealt_out(monkeypatch):
    """Ranks as two hosts get them in turns; the order that they should have."""
    module = importlib.import_module("hetmp.cluster.hosts")  # its function hosts hides it
    monkeypatch.setattr(module, "hosts", lambda group: tuple(r % 2 for r in range(group.size)))
    return (*range(0, world().size, 2), *range(1, world().size, 2))


@pytest.mark.every_size
@pytest.mark.mpi(min_size=2)
def test_a_communicator_is_arranged_once(dealt_out):
    user = world().Dup()
    comm, order = arranged(user, Group(user))
    assert order == dealt_out
    assert comm.allgather(world().rank) == list(dealt_out)
    again, _ = arranged(user, Group(user))
    assert again == comm
    assert (comm is user) == (world().size == 2)


@pytest.mark.every_size
@pytest.mark.mpi(min_size=2)
def test_arranged_ranks_train_the_same_each_with_what_it_was_told(tmp_path, monkeypatch, request):
    from hetmp.run import train
    from hetmp.run.step import TrainStep

    folder = shared(tmp_path)
    weights = [5.0, 1.0, 3.0, 2.0, 4.0][: world().size]
    slowdown = [1 + rank / 1000 for rank in range(world().size)]
    config = train_config(
        model="digits", data="digits", dtype="float64", batch_size=100, steps=4,
        weights=weights, slowdown=slowdown,
    )  # fmt: skip

    def losses(name):
        out = folder / name
        train.train(config.model_copy(update={"out": out}), world().Dup())
        world().Barrier()
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [record["loss"] for record in records if "loss" in record]

    usual = losses("usual")
    order = request.getfixturevalue("dealt_out")
    seen = []
    whole = TrainStep.__init__

    def made(steps, config, model, *given):
        seen.append(model)
        whole(steps, config, model, *given)

    monkeypatch.setattr(TrainStep, "__init__", made)
    np.testing.assert_allclose(losses("arranged"), usual, rtol=1e-10)
    runtime = seen[0].hetmp
    assert order[runtime.group.rank] == world().rank
    assert runtime.group.slowdown.factor == slowdown[world().rank]
    held = dict(seen[0].named_parameters())
    for layer in runtime.plan.layers:
        by_rank = dict(zip(order, layer.counts, strict=True))
        moved = apportion(layer.channels, [weights[rank] for rank in order])
        assert layer.counts == moved.counts
        if layer.scheme == "filters":
            assert len(held[f"{layer.name}.weight"]) == by_rank[world().rank]


# --- what is shown --------------------------------------------------------------------------------

PLACE = RankPlace(
    host="n1", kind="fast", device="a processor", cores=8, threads=4, memory=3 << 30
)  # fmt: skip


def shown(places):
    """The table's rows, as words."""
    console = Console(file=io.StringIO(), width=140)
    console.print(placement_table(places))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()[1:]]


def test_neighbours_that_are_alike_share_a_row():
    other = PLACE.model_copy(update={"device": "a GPU", "memory": 0})
    little = PLACE.model_copy(update={"memory": 1 << 30})
    assert shown([PLACE, little, PLACE, other, PLACE]) == [
        "0-2 n1 a processor 8 4 3 GiB", "3 n1 a GPU 8 4 ?", "4 n1 a processor 8 4 3 GiB",
    ]  # fmt: skip
    for difference in ({"host": "n2"}, {"cores": 4}, {"threads": 1}):
        assert len(shown([PLACE, PLACE.model_copy(update=difference)])) == 2


def test_gpus_that_nobody_uses_are_told(capsys):
    blind = PLACE.model_copy(update={"unused_gpus": 2})
    show_placement([PLACE])
    assert "note:" not in capsys.readouterr().out
    show_placement([PLACE, blind])
    assert "note: rank 1 was given a GPU that torch" in capsys.readouterr().out
    show_placement([blind, PLACE, blind])
    assert "note: ranks 0, 2 were given GPUs that torch" in capsys.readouterr().out
