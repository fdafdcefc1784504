"""How a run's work is shared: measured and planned, by a plan, with ranks left out."""

import json
import math
from pathlib import Path

import pytest
import torch
from own_network import diverging

import hetmp
from helpers.everywhere import DIGITS, STEPS, folder, refused_everywhere, same_everywhere
from helpers.plain_training import plain_run
from helpers.planning import CPU, digits, world
from hetmp.core.errors import HetmpError
from hetmp.planner.profiling import Budget, device_title, links, profile_model
from hetmp.run.config import train_config
from hetmp.run.train import train
from hetmp.slicing.graph import ModelGraph, fingerprint


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Links are measured with little between exchanges: their times matter to no test."""
    monkeypatch.setattr(links, "CACHE", 1 << 12)


def graph_of_digits() -> ModelGraph:
    """Read with another batch and dtype than it is trained with."""
    return hetmp.read_graph(*digits())


def uneven(ranks: int) -> list[float]:
    return [2.0, 1.0, 3.0, 1.0, 2.0][:ranks]


def plan_without(rank: int) -> hetmp.Plan:
    """A plan for all ranks of which one takes no part."""
    size = world().size
    members = [other for other in range(size) if other != rank]
    plan = hetmp.plan_from_weights(graph_of_digits(), uneven(size - 1))
    return plan.spread(members, size)


def saved(plan: hetmp.Plan, path: Path) -> Path:
    """Written by rank 0, there for all."""
    if world().rank == 0:
        plan.save(path)
    world().Barrier()
    return path


def test_weights_auto_and_a_profile_belong_together():
    assert train_config(**DIGITS, weights="auto").weights == "auto"
    with pytest.raises(HetmpError, match="give both, or neither"):
        train_config(**DIGITS, profile="p.json")
    with pytest.raises(HetmpError, match="both set how layers are cut"):
        train_config(**DIGITS, weights="auto", plan="p.json")
    with pytest.raises(HetmpError, match="profile_seconds"):
        train_config(**DIGITS, weights="auto", profile_seconds=0)


@pytest.mark.mpi
def test_measured_and_planned_it_is_the_same_training(tmp_path, capsys):
    out = folder(tmp_path) / "auto"
    auto = train(train_config(**DIGITS, weights="auto", profile_seconds=0.3, out=out))
    equal = train(train_config(**DIGITS))
    same_everywhere(auto)
    assert auto.loss == pytest.approx(equal.loss, rel=1e-9)
    assert auto.steps == equal.steps == STEPS
    assert auto.accuracy == pytest.approx(equal.accuracy, abs=1e-12)
    world().Barrier()
    plan = hetmp.Plan.load(out / "plan.json")
    assert plan.ranks == world().size
    if world().size > 1:
        assert plan.fingerprint == fingerprint(graph_of_digits())
        assert plan.devices == (device_title(CPU),) * world().size
        assert plan.predicted_seconds > 0
        said = capsys.readouterr().out
        assert (world().rank == 0) == ("measuring the ranks, about 0.3 s" in said)


@pytest.mark.mpi(min_size=2)
def test_ranks_are_measured_in_the_precision_that_each_computes_in(tmp_path):
    """Also where the plan leaves some out, the others keep theirs."""
    ranks = world().size
    out = folder(tmp_path) / "unlike"
    autocast = tuple("bfloat16" if rank % 2 else "none" for rank in range(ranks))
    unlike = {**DIGITS, "dtype": "float32", "autocast": autocast}
    result = train(train_config(**unlike, weights="auto", profile_seconds=0.3, out=out))
    same_everywhere(result)
    world().Barrier()
    devices = hetmp.Plan.load(out / "plan.json").devices
    assert ["in bfloat16" in name for name in devices] == [rank % 2 == 1 for rank in range(ranks)]
    again = train(train_config(**unlike, plan=out / "plan.json"))
    assert again.loss == pytest.approx(result.loss, rel=1e-6)
    refused_everywhere("the plan was made for", plan=out / "plan.json")


@pytest.mark.mpi(min_size=2)
def test_a_profile_is_used_again_and_only_for_its_own_work(tmp_path):
    path = folder(tmp_path) / "profile.json"
    group = hetmp.Group()
    module, example = digits()
    found = profile_model(module, example, group, budget=Budget(0.1, ()))
    if group.is_root:
        found.save(path)
    world().Barrier()
    mine = {"weights": "auto", "profile": path}
    result = train(train_config(**(DIGITS | mine | {"batch_size": 16, "dtype": "float32"})))
    same_everywhere(result)
    assert math.isfinite(result.loss) and result.steps == STEPS
    refused_everywhere("batch size 16, this run has batch size 64", **mine, batch_size=64)
    refused_everywhere("dtype float32, this run has dtype float64", **mine, batch_size=16)
    wanted = {**mine, "batch_size": 16, "dtype": "float32"}
    slowed = [1.0] * (group.size - 1) + [4.0]
    last = f"rank {group.size - 1} is {device_title(CPU, 4.0)}, the profile has"
    refused_everywhere(last, **wanted, slowdown=slowed)
    refused_everywhere("it is of another model", **wanted, model="own_network:build")
    refused_everywhere("nowhere.json cannot be read", **(wanted | {"profile": "nowhere.json"}))
    if group.is_root:
        fewer = {"devices": found.devices[:-1], "hosts": found.hosts[:-1], "links": ()}
        found.model_copy(update=fewer).save(path)
    world().Barrier()
    refused_everywhere(f"has {group.size - 1} ranks, this job has {group.size}", **wanted)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("place", ["first", "last"])
def test_members_train_as_if_they_were_alone(tmp_path, place):
    rank = 0 if place == "first" else world().size - 1
    plan = plan_without(rank)
    path = saved(plan, folder(tmp_path) / "plan.json")
    out = folder(tmp_path) / "run"
    result = train(train_config(**DIGITS, plan=path, out=out))
    same_everywhere(result)
    group = hetmp.Group()
    members = group.part(plan.members)
    assert (members is None) == (group.rank == rank)
    alone = None
    if members is not None and members.size > 1:
        comm_path = out / f"own-{group.rank}.json"
        plan.of_members().save(comm_path)
        alone = train(train_config(**DIGITS, plan=comm_path), members)
    group.meet()
    assert all(other in (None, result) for other in world().allgather(alone))
    curve, _, accuracy = plain_run("sgd", None, steps=STEPS)
    assert result.loss == pytest.approx(float(curve[-1]), rel=1e-10)
    assert result.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert result.steps == STEPS
    written = hetmp.Plan.load(out / "plan.json")
    assert written == plan and written.left_out == (rank,)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["kind"] == "end" and records[-1]["loss"] == result.loss
    assert (out / "model.h5").exists()


@pytest.mark.mpi(min_size=3)
def test_all_but_one_rank_may_be_left_out(tmp_path):
    plan = hetmp.plan_from_weights(graph_of_digits(), [1]).spread([1], world().size)
    result = train(train_config(**DIGITS, plan=saved(plan, folder(tmp_path) / "plan.json")))
    same_everywhere(result)
    assert result.loss == pytest.approx(float(plain_run("sgd", None, steps=STEPS)[0][-1]))


@pytest.mark.mpi
def test_a_plan_for_others_is_refused_on_all_ranks(tmp_path):
    size = world().size
    path = folder(tmp_path) / "plan.json"
    graph = graph_of_digits()
    other = saved(hetmp.plan_from_weights(graph, [1] * (size + 1)), path)
    refused_everywhere(f"for {size + 1} ranks, this job has {size}", plan=other)
    plan = hetmp.plan_from_weights(graph, [1] * size)
    saved(plan.model_copy(update={"fingerprint": "1234abcd"}), path)
    refused_everywhere("was made for another model", plan=path)
    titles = (device_title(CPU),) * (size - 1) + ("abacus",)
    saved(plan.model_copy(update={"devices": titles}), path)
    refused_everywhere("but the plan was made for abacus", plan=path)
    right = {"fingerprint": fingerprint(graph), "devices": (device_title(CPU),) * size}
    saved(plan.model_copy(update=right), path)
    assert train(train_config(**DIGITS, plan=path)).steps == STEPS


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("place", ["first", "last"])
def test_what_members_refuse_is_raised_on_all_ranks(tmp_path, place):
    plan = plan_without(0 if place == "first" else world().size - 1)
    path = saved(plan, folder(tmp_path) / "plan.json")
    refused_everywhere("the plan is for another model", plan=path, model="own_network:build")
    refused_everywhere("in the plan and 11 in the model", plan=path, data="digits-segmentation")
    # And the ranks can go on together.
    assert train(train_config(**DIGITS, plan=path)).steps == STEPS


@pytest.mark.mpi(min_size=2)
def test_a_loss_that_is_no_number_ends_the_run_on_all_ranks(tmp_path):
    """All members see it at the same step, and say so without an abort."""
    ranks = world().size
    graph = hetmp.read_graph(diverging((1, 8, 8), 10), torch.empty(2, 1, 8, 8))
    plan = hetmp.plan_from_weights(graph, [1.0] * (ranks - 1)).spread(range(1, ranks), ranks)
    path = saved(plan, folder(tmp_path) / "plan.json")
    refused_everywhere("the loss is nan", plan=path, model="own_network:diverging")


@pytest.mark.mpi
def test_a_part_of_the_ranks_has_a_communicator_of_its_own():
    group = hetmp.Group()
    ranks = list(range(group.size))[::-2]
    part = group.part(ranks)
    if group.rank in ranks:
        assert part is not None
        assert (part.rank, part.size) == (ranks.index(group.rank), len(ranks))
        assert part.allgather(group.rank) == ranks
    else:
        assert part is None
    group.meet()


@pytest.mark.mpi
def test_ranks_meet_only_when_all_are_there():
    """A rank comes through a meeting after the last rank told that it was on its way."""
    group = hetmp.Group()
    last, tag = group.size - 1, 77
    told = None
    if group.rank == last:
        for rank in range(last):
            world().send("on my way", rank, tag)
    group.meet()
    if group.rank != last:
        assert world().iprobe(last, tag)
        told = world().recv(source=last, tag=tag)
    assert told == (None if group.rank == last else "on my way")


@pytest.mark.mpi
def test_texts_of_all_ranks():
    group = hetmp.Group()
    texts = group.gather_texts(f"rank {group.rank}, {'é' * group.rank}")
    assert texts == [f"rank {rank}, {'é' * rank}" for rank in range(group.size)]
    done = group.all_done()
    done.Wait()
