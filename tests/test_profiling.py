"""Measuring: what a rank runs on, the document, its other sources; and the measuring itself."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.planning import CPU, digits, made_up_profile, read_model, world
from hetmp.cluster import AgreedError, RehearsalGroup, machine
from hetmp.core.errors import HetmpError
from hetmp.planner import Tables, make_plan
from hetmp.planner.cluster_file import cluster_profile, joined_profiles, read_weights
from hetmp.planner.profiling import (
    OPTIMIZER,
    TURN,
    Budget,
    Profile,
    device_title,
    links,
    measure,
    profile_model,
)
from hetmp.planner.profiling import step_work as work_of
from hetmp.planner.profiling.measure import on_grid
from hetmp.slicing import Tuning
from hetmp.slicing.rehearsal import rehearsal_model
from hetmp.slicing.schedule import CallStep
from hetmp.slicing.scheduler import schedule_model


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Links are measured with little between exchanges: their times matter to no test."""
    monkeypatch.setattr(links, "CACHE", 1 << 12)


# --- what a rank runs on


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A made-up machine: files by name, below a folder."""

    def write(**files: str) -> Path:
        for name, path in (("cpu", "CPU_INFO"), ("memory", "MEMORY_INFO"), ("own", "OWN_CGROUP")):
            monkeypatch.setattr(machine, path, tmp_path / name)
        monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_a_processors_name(host):
    host(cpu="processor : 0\nmodel name\t: Abacus 3000: fast\nmodel name\t: Other\n")
    assert machine.device_name(CPU) == "Abacus 3000: fast"


def test_a_processor_without_a_name_has_one_all_the_same(host):
    host(cpu="processor : 0\n")
    assert machine.device_name(CPU)


def test_free_memory_is_the_least_of_all_limits(host):
    folder = host(memory="MemTotal: 9 kB\nMemAvailable:    2000 kB\n")
    assert machine.free_memory(CPU) == 2000 * 1024
    host(own="0::/job/task\n", groups__job__memory_max="1500000\n")
    (folder / "groups/job/memory.current").write_text("500000\n")
    assert machine.free_memory(CPU) == 1_000_000
    host(groups__job__task__memory_max="max\n", groups__job__task__memory_current="7\n")
    assert machine.free_memory(CPU) == 1_000_000
    host(groups__job__task__memory_max="5\n")
    assert machine.free_memory(CPU) == 0


def test_free_memory_that_nobody_tells(host):
    host()
    assert machine.free_memory(CPU) == 0


def test_the_period_of_a_quota(host):
    host()
    assert machine.quota_period() == 0
    host(own="1:cpu:/old\n0::/job/task\n", groups__job__task__cpu_max="max 100000\n")
    assert machine.quota_period() == 0
    host(groups__job__cpu_max="20000 50000\n")
    assert machine.quota_period() == 0.05


def test_the_period_of_a_quota_in_control_groups_of_version_1(host):
    folder = host(own="9:memory:/other\n4:cpu,cpuacct:/job/task\n") / "groups/cpu/job"
    (folder / "task").mkdir(parents=True)
    (folder / "task/cpu.cfs_quota_us").write_text("-1\n")
    assert machine.quota_period() == 0
    (folder / "cpu.cfs_quota_us").write_text("4000\n")
    (folder / "cpu.cfs_period_us").write_text("20000\n")
    assert machine.quota_period() == 0.02


# --- the document


@pytest.fixture(scope="module")
def profile() -> Profile:
    return made_up_profile(read_model("digits"), [2, 1, 1])


def test_json_there_and_back(profile, tmp_path):
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


def test_titles_tell_threads_and_slowdown(profile):
    changed = profile.devices[0].model_copy(update={"threads": 4, "slowdown": 2.5})
    assert changed.title == "abacus 2 x4, slowed 2.5 times"
    assert profile.devices[0].title == "abacus 2"
    assert device_title(CPU, 3.0).endswith(", slowed 3 times")


def test_a_speed_is_of_the_precision_that_is_computed_in():
    """A device in bfloat16 is another one than in float32: what is kept of one is not the other."""
    plain = device_title(CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert device_title(CPU) != plain
        assert "in bfloat16" in device_title(CPU)
    assert device_title(CPU) == plain


def work(document):
    return document["devices"][1]["works"][0]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda d: d.update(format="hetmp-plan"), "format: .*hetmp-profile"),
        (lambda d: d.update(version=3), "version: .*1 or 2"),
        (lambda d: d.update(batch_size=0), "batch_size: "),
        (lambda d: d.update(devices=[]), "devices: "),
        (lambda d: d.update(speed=1), "speed: "),
        (lambda d: d["devices"][2].update(slowdown=0.5), "devices.2.slowdown: "),
        (lambda d: work(d).update(forward=[1.0]), "devices.1.works.0: .*forward of .*every count"),
        (lambda d: work(d).update(kind="filter"), "devices.1.works.0.kind: "),
        (lambda d: work(d)["counts"].reverse(), "devices.1.works.0: .*must ascend"),
        (lambda d: work(d).update(total=1), "devices.1.works.0: .*must be within 0 to 1"),
        (lambda d: work(d)["backward"].__setitem__(1, -1.0), r"works.0.backward.1: "),
        (lambda d: d["links"][0].update(bytes=[1]), "links.0: .*Allgatherv must have the same"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place(profile, tmp_path, edit, named):
    document = json.loads(profile.model_dump_json())
    edit(document)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(HetmpError) as refused:
        Profile.load(path)
    assert re.search(named, str(refused.value))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"null"])
def test_a_file_that_is_no_profile(tmp_path, content):
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(HetmpError, match=re.escape(str(path))):
        Profile.load(path)


def test_a_torn_file(profile, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(profile.model_dump_json()[:-100])
    with pytest.raises(HetmpError, match=re.escape(str(path))):
        Profile.load(path)
    with pytest.raises(HetmpError, match=r"none\.json cannot be read"):
        Profile.load(tmp_path / "none.json")


def test_other_work_and_other_ranks_are_refused(profile):
    titles = [device.title for device in profile.devices]
    profile.check_batch(8, "float32")
    profile.check_devices(titles)
    for check, named in (
        (lambda: profile.check_batch(9, "float32"), "with batch size 8, this run has batch size 9"),
        (
            lambda: profile.check_batch(8, "float64"),
            "with dtype float32, this run has dtype float64",
        ),
        (lambda: profile.check_devices(titles[:2]), "has 3 ranks, this job has 2"),
        (
            lambda: profile.check_devices([titles[0], "abacus 7", titles[2]]),
            "rank 1 is abacus 7, the profile has abacus 1",
        ),
    ):
        with pytest.raises(HetmpError, match=named):
            check()


# --- other sources


def test_a_cluster_of_several_kinds(profile, tmp_path):
    profile.save(tmp_path / "here.json")
    (tmp_path / "cluster.toml").write_text(
        '[[ranks]]\nprofile = "here.json"\ncount = 2\n'
        '[[ranks]]\nprofile = "here.json"\nrank = 1\ncount = 3\n'
        "[link]\nlatency = 1e-5\nbandwidth = 1e9\n"
    )
    made = cluster_profile(tmp_path / "cluster.toml")
    assert [device.title for device in made.devices] == ["abacus 2"] * 2 + ["abacus 1"] * 3
    assert {link.collective for link in made.links} == {
        "Allgatherv", "Reduce_scatter", "Allreduce", "Alltoallv", TURN,
    }  # fmt: skip
    assert make_plan(read_model("digits"), made).plan.ranks == 5


def test_a_cluster_with_the_links_of_a_profile(profile, tmp_path):
    profile.save(tmp_path / "here.json")
    (tmp_path / "cluster.toml").write_text(
        '[[ranks]]\nprofile = "here.json"\ncount = 3\n[link]\nprofile = "here.json"\n'
    )
    assert cluster_profile(tmp_path / "cluster.toml").links == profile.links
    (tmp_path / "cluster.toml").write_text(
        '[[ranks]]\nprofile = "here.json"\ncount = 12\n[link]\nprofile = "here.json"\n'
    )
    made = cluster_profile(tmp_path / "cluster.toml")
    assert len(made.devices) == 12 and made.links != profile.links


RANKS = '[[ranks]]\nprofile = "here.json"\n'
LINK = "[link]\nlatency = 1e-5\nbandwidth = 1e9\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (RANKS, "link: "),
        (LINK, "ranks: "),
        ("ranks = ", "cannot be read: "),
        (RANKS + "count = 0\n" + LINK, "ranks.0.count: "),
        (RANKS + "speed = 2\n" + LINK, "ranks.0.speed: "),
        (RANKS + "rank = 3\n" + LINK, "here.json has 3 ranks: there is no rank 3"),
        (RANKS + "[link]\nlatency = 1e-5\n", "link: .*either a profile, or latency and bandwidth"),
        (RANKS + LINK + 'profile = "here.json"\n', "link: .*either a profile"),
        (RANKS + "[link]\nlatency = 0\nbandwidth = 1\n", "link.latency: "),
    ],
)
def test_a_cluster_that_is_wrong_is_refused_with_the_place(profile, tmp_path, text, named):
    profile.save(tmp_path / "here.json")
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(HetmpError) as refused:
        cluster_profile(path)
    assert re.search(named, str(refused.value))
    assert str(path) in str(refused.value)


def test_a_cluster_of_profiles_that_cannot_be_read(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_text(RANKS + LINK)
    with pytest.raises(HetmpError, match=r"here\.json cannot be read"):
        cluster_profile(path)
    (tmp_path / "here.json").write_text("{")
    with pytest.raises(HetmpError, match=r"here\.json"):
        cluster_profile(path)
    with pytest.raises(HetmpError, match=r"none\.toml cannot be read"):
        cluster_profile(tmp_path / "none.toml")


def test_profiles_of_several_jobs_are_joined(profile):
    lonely = made_up_profile(read_model("digits"), [5])
    made = joined_profiles([lonely, profile])
    assert [device.title for device in made.devices] == [
        "abacus 5", "abacus 2", "abacus 1", "abacus 1",
    ]  # fmt: skip
    assert joined_profiles([profile]) == profile
    with pytest.raises(HetmpError, match="no times of exchanges"):
        joined_profiles([lonely, lonely])
    for what, other in (("model", "x"), ("batch_size", 9), ("dtype", "float64")):
        with pytest.raises(HetmpError, match=what.replace("_", " ")):
            joined_profiles([profile, lonely.model_copy(update={what: other})])


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "weights"
    path.write_text("# speeds\n70\n\n 25.5  # a node\n5\n")
    assert read_weights(path) == (70, 25.5, 5)
    path.write_text("node1 0 700 0.1 0.2\nnode2 0 250\n#node3 0 1\nnode2 1 50 7\n")
    assert read_weights(str(path)) == (700, 250, 50)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("70\nfast\n", "line 2: 'fast' is neither"),
        ("node1 0\n", "line 1: 'node1 0' is neither"),
        ("node1 0 many\n", "line 1"),
        ("# nothing\n", "there is no number in any line"),
        ("", "there is no number in any line"),
    ],
)
def test_a_file_without_weights(tmp_path, text, named):
    path = tmp_path / "part.dist"
    path.write_text(text)
    with pytest.raises(HetmpError, match=named) as refused:
        read_weights(path)
    assert str(path) in str(refused.value)
    with pytest.raises(HetmpError, match=r"none cannot be read"):
        read_weights(tmp_path / "none")


# --- measuring


@pytest.mark.parametrize("units", [1, 3, 10, 64, 100, 512])
def test_shares_lie_on_a_grid_and_within_the_layer(units):
    counts = [on_grid(share, units) for share in (0, 1 / 16, 1 / 4, 1 / 2, 1)]
    assert counts == sorted(counts)
    assert counts[0] == 0 and counts[1] >= 1 and counts[-1] <= units
    if units == 512:
        assert all(count % 16 == 0 for count in counts)


def measured(**values) -> Profile:
    module, example = digits()
    values = {"budget": Budget(0.5), **values}
    return profile_model(module, example, hetmp.Group(), name="digits", **values)


@pytest.mark.mpi
def test_all_ranks_get_the_same_profile_with_all_that_a_plan_needs():
    size = world().size
    profile = measured()
    documents = world().allgather(profile.model_dump_json())
    assert len(set(documents)) == 1
    assert Profile.model_validate_json(documents[0]) == profile
    assert (profile.model, profile.batch_size, profile.dtype) == ("digits", 16, "float32")
    assert len(profile.devices) == size
    module, example = digits()
    graph = hetmp.read_graph(module, example)
    tables = Tables(profile.devices)
    unequal = [70.0, 25.0, 5.0, 3.0, 2.0][:size]
    for weights, schemes in (([1.0] * size, "filters"), (unequal, "filters"), (unequal, "batch")):
        schedule = schedule_model(graph, hetmp.plan_from_weights(graph, weights, schemes))
        steps = [step for step in schedule.training.steps if isinstance(step, CallStep)]
        assert steps
        for step in steps:
            signature, kind, _ = work_of(step, 16)
            assert tables.has(signature, kind)
    assert tables.has(OPTIMIZER, "channelwise")
    names = {link.collective for link in profile.links}
    if size == 1:
        assert not names
    else:
        assert names == {"Allgatherv", "Reduce_scatter", "Allreduce", "Alltoallv", TURN}
        assert all(min(link.seconds) > 0 for link in profile.links)
        sets = {link.ranks for link in profile.links}
        assert sets == ({(), (0, 1)} if len(profile.devices) > 2 else {()})
        assert profile.hosts == (0,) * len(profile.devices)
    assert all(device.title == device_title(CPU) for device in profile.devices)
    for device in profile.devices:
        for times in device.works:
            if times.kind == "batch":
                assert times.total == 16 and times.counts in ((4,), (4, 12))
            if times.kind == "filters":
                assert times.forward[-1] > 0 and times.backward[-1] + times.parameters[-1] > 0
    planned = make_plan(graph, profile)
    assert planned.plan.ranks == size
    schedule_model(graph, planned.plan)


@pytest.mark.mpi(min_size=2)
def test_ranks_may_measure_for_unlike_times():
    rank = world().rank
    profile = measured(
        budget=Budget(0.05 + 0.2 * rank, schemes=("inputs",) if rank % 2 == 0 else ())
    )
    assert len(set(world().allgather(profile.model_dump_json()))) == 1
    # The ranks that were done first went on, and met the others afterwards.
    assert world().allgather(rank) == list(range(world().size))


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_is_slowed_is_measured_as_slow(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", (2, 3))
    size, rank = world().size, world().rank
    profile = measured(slowdown=20.0 if rank == size - 1 else 1.0, budget=Budget(0.3, ()))
    first, last = (
        {
            (times.work, count): times.forward[i] + times.backward[i] + times.parameters[i]
            for times in device.works
            for i, count in enumerate(times.counts)
        }
        for device in (profile.devices[0], profile.devices[-1])
    )
    both = first.keys() & last.keys()
    assert len(both) > 5
    assert sum(last[key] for key in both) >= 3 * sum(first[key] for key in both)
    assert profile.devices[-1].title.endswith("slowed 20 times")
    assert profile.devices[-1].slowdown == 20 and profile.devices[0].slowdown == 1


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", ["filters", "batch", "batch:1"])
def test_a_rehearsal_meets_no_other_rank(schemes):
    """Every rank rehearses another share, another number of times, with no one waiting."""
    size, rank = world().size, world().rank
    module, example = digits()
    graph = hetmp.read_graph(module, example)
    group = RehearsalGroup(rank, size + 1)
    plan = hetmp.plan_from_weights(graph, [1.0 + r for r in range(size + 1)], schemes)
    model = rehearsal_model(graph, plan, group, CPU, Tuning())
    for _ in range(1 + 3 * rank):
        model(torch.randn(16, 1, 8, 8)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )
    counts = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    for layer in plan.layers:
        held = layer.channels if layer.scheme == "batch" else layer.counts[rank]
        assert counts[f"{layer.name}.weight"] == held
    assert (group.allgather(np.array([rank])) == rank).all()
    assert group.allgather(np.array([rank])).shape == (size + 1, 1)
    assert world().allgather(rank) == list(range(size))


@pytest.mark.mpi
def test_a_model_that_cannot_be_profiled_is_refused_on_all_ranks():
    with pytest.raises(AgreedError, match="needs a floating-point tensor"):
        profile_model(
            nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)).to("meta"),
            torch.zeros(4, 2, dtype=torch.long),
            hetmp.Group(),
            budget=Budget(0.1),
        )


@pytest.mark.mpi
def test_float64_and_one_rank_with_wrong_input():
    module, example = digits(torch.float64)
    profile = profile_model(module, example, hetmp.Group(), budget=Budget(0.1, ()))
    assert profile.dtype == "float64"
    wrong = example[:, :, :1, :1] if world().rank == world().size - 1 else example
    with pytest.raises(AgreedError):
        profile_model(module, wrong, hetmp.Group(), budget=Budget(0.1, ()))
