"""Profiles kept across jobs: the folder, and jobs that are planned from what it has."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import hetmp
from helpers.everywhere import DIGITS, folder, refused_everywhere, same_everywhere
from helpers.planning import (
    CPU,
    device,
    digits,
    formula,
    made_up_profile,
    made_up_works,
    read_model,
    world,
)
from helpers.running import TRAIN, hetmp_run, invoked
from hetmp import models
from hetmp.cluster import AgreedError
from hetmp.core.errors import HetmpError
from hetmp.planner import make_plan
from hetmp.planner.cluster_file import cluster_profile
from hetmp.planner.profiling import (
    Budget,
    DeviceProfile,
    Library,
    Profile,
    Task,
    device_title,
    links,
    profile_by_kind,
)
from hetmp.planner.profiling import by_node_kind as kinds
from hetmp.planner.profiling.library import slowest
from hetmp.run.config import train_config
from hetmp.run.train import train
from hetmp.slicing import Tuning
from hetmp.slicing.graph import ModelGraph


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Links are measured with little between exchanges: their times matter to no test."""
    monkeypatch.setattr(links, "CACHE", 1 << 12)


# --- the folder


def task_of(model: str, classes: int = 10, batch: int = 16, tuning: Tuning | None = None) -> Task:
    with torch.device("meta"):
        module = models.build(model, (1, 8, 8), classes)
    example = torch.empty((batch, 1, 8, 8), device="meta")
    return Task.of(model, hetmp.read_graph(module, example), example, tuning or Tuning())


def test_a_task_has_another_name_wherever_times_could_be_others():
    plain = task_of("digits")
    assert re.fullmatch(r"digits-1x8x8-b16-float32-[0-9a-f]{8}", plain.name)
    assert (plain.model, plain.batch_size, plain.dtype) == ("digits", 16, "float32")
    assert task_of("digits") == plain
    own = task_of("own_network:build")
    assert own.name.startswith("own_network-build-1x8x8-") and own.model == "own_network:build"
    with_flags = task_of("digits", tuning=Tuning(shared_memory=False, regather=True))
    assert with_flags.name == f"{plain.name}-no-shared-memory-regather"
    others = [own, with_flags, task_of("digits", classes=9), task_of("digits", batch=8)]
    assert len({plain.name, *(other.name for other in others)}) == 5


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    return read_model("digits")


@pytest.fixture(scope="module")
def made_up(graph) -> DeviceProfile:
    return device(made_up_works(graph, formula()), device="Abacus (R) 3/4")


@pytest.fixture
def library(tmp_path) -> Library:
    return Library(tmp_path / "profiles", Task("digits-b8", "digits", 8, "float32"))


def test_what_is_kept_is_found_by_kind_and_device(library, made_up):
    assert library.find("gpu,a100", made_up.title) is None
    path = library.keep("gpu,a100", made_up, "2026-01-01T00:00:00+0000")
    assert path == library.folder / "digits-b8" / "gpu-a100" / "Abacus-R-3-4.json"
    assert library.find("gpu,a100", made_up.title) == made_up
    assert library.find("cpu", made_up.title) is None
    # The same name where it is made safe, and another device.
    assert library.find("gpu,a100", "Abacus [R] 3/4") is None
    # A kind may have several devices; one that is kept again takes the place of the first.
    slowed = made_up.model_copy(update={"slowdown": 1.5})
    library.keep("gpu,a100", slowed, "2026-01-01T00:00:00+0000")
    again = made_up.model_copy(update={"rest": 7.0})
    library.keep("gpu,a100", again, "2026-01-01T00:00:00+0000")
    assert library.find("gpu,a100", slowed.title) == slowed
    assert library.find("gpu,a100", made_up.title) == again
    assert {file.name for file in path.parent.iterdir()} == {
        "Abacus-R-3-4.json", "Abacus-R-3-4-slowed-1.5-times.json",
    }  # fmt: skip
    with pytest.raises(HetmpError, match=r"'\.\./' cannot name a kind of node"):
        library.keep("../", made_up, "")


def test_a_kept_file_is_a_profile_as_any_other(library, graph, made_up, tmp_path):
    path = library.keep("old", made_up, "2026-01-01T00:00:00+0000")
    (tmp_path / "cluster.toml").write_text(
        f'[[ranks]]\nprofile = "{path.relative_to(tmp_path)}"\ncount = 2\n'
        "[link]\nlatency = 1e-6\nbandwidth = 1e10\n"
    )
    made = cluster_profile(tmp_path / "cluster.toml")
    assert made.model == "digits" and make_plan(graph, made).plan.ranks == 2
    assert "Abacus (R) 3/4" in invoked("profile", "--show", path).output


def test_a_torn_file_and_one_of_other_work_are_named_with_the_remedy(library, made_up):
    path = library.keep("old", made_up, "2026-01-01T00:00:00+0000")
    whole = path.read_text()
    for text in (whole[:-100], "", whole.replace('"batch_size": 8', '"batch_size": 9')):
        path.write_text(text)
        with pytest.raises(HetmpError, match=rf"Remove {re.escape(str(path))}"):
            library.find("old", made_up.title)


def test_a_folder_that_cannot_be_written_is_told_before_and_after(library, made_up):
    library.folder.write_text("a file")
    for act in (
        lambda: library.check_writable("old"),
        lambda: library.keep("old", made_up, "2026-01-01T00:00:00+0000"),
    ):
        with pytest.raises(
            HetmpError, match=rf"writable folder instead of {re.escape(str(library.folder))}"
        ):
            act()
    assert library.find("old", made_up.title) is None


def test_jobs_that_keep_at_once_tear_nothing(library, made_up):
    versions = [made_up.model_copy(update={"rest": float(i)}) for i in range(4)]

    def keep_and_find(number: int) -> bool:
        library.keep("old", versions[number % 4], "2026-01-01T00:00:00+0000")
        return library.find("old", made_up.title) in versions

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(keep_and_find, range(40)))
    (left,) = library.place("old", made_up.title).parent.iterdir()
    assert left.suffix == ".json"


def test_the_slowest_is_told_by_what_was_measured_on_all(graph):
    fast, slow = made_up_profile(graph, [2, 1]).devices
    assert slowest([fast, slow, fast]) is slow
    # A device that had no time for its largest shares is not faster for that.
    hasty = tuple(
        times.model_copy(
            update={
                name: getattr(times, name)[: max(1, len(times.counts) - 2)]
                for name in ("counts", "forward", "backward", "parameters", "saved")
            }
        )
        for times in slow.works
    )
    hasty_one = slow.model_copy(update={"works": hasty})
    assert slowest([fast, hasty_one]) is hasty_one


def test_profiles_mean_auto_where_nothing_else_is_said():
    assert train_config(**DIGITS, profiles="kept").plans
    assert train_config(**DIGITS, profiles="kept", weights="auto").plans
    assert not train_config(**DIGITS, profiles="kept", weights=(3, 1)).plans
    assert not train_config(**DIGITS, profiles="kept", plan="plan.json").plans
    assert not train_config(**DIGITS).plans
    with pytest.raises(HetmpError, match="profile and profiles both set"):
        train_config(**DIGITS, profiles="kept", profile="p.json", weights="auto")
    with pytest.raises(HetmpError, match="--kind names a kind of node in the folder --profiles"):
        invoked("profile", "digits", "--kind", "old")


def test_kept_by_one_command_and_used_by_another(tmp_path):
    kept = tmp_path / "kept"
    flags = ("--batch-size", 100, "--seconds", 0.1, "--filters-only", "--device", "cpu")
    done = hetmp_run("profile", "digits", *flags, "--profiles", kept, "--kind", "gpu,a100", ranks=2)
    assert done.returncode == 0, done.stderr
    (path,) = kept.rglob("*.json")
    assert path.parent.name == "gpu-a100" and done.stdout.endswith(f"wrote {path}\n")
    assert len(Profile.load(path).devices) == 1
    use = (*TRAIN, "--device", "cpu", "--steps", 2, "--profiles", kept)
    done = hetmp_run(*use, ranks=3, HETMP_NODE_KIND="gpu-a100")
    assert done.returncode == 0, done.stderr
    assert f"nodes of kind gpu-a100: times read from {kept}, " in done.stdout
    assert "planned: " in done.stdout


# --- jobs


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """One entry for every time that this rank's device is measured."""
    calls: list[str] = []
    measure = kinds.profile_model

    def counting(*args, **kwargs):
        calls.append(kwargs["name"])
        return measure(*args, **kwargs)

    monkeypatch.setattr(kinds, "profile_model", counting)
    return calls


def planned(kept: Path, kind: str, slowdown: float = 1.0) -> Profile:
    """The profile that a job on these ranks is planned with."""
    module, example = digits()
    profile = profile_by_kind(
        module,
        example,
        hetmp.Group(),
        folder=kept,
        kind=kind,
        name="digits",
        device=CPU,
        budget=Budget(0.3, ()),
        tuning=Tuning(),
        slowdown=slowdown,
    )
    same_everywhere(profile.model_dump_json())
    return profile


def kept_files(kept: Path) -> dict[str, Path]:
    """By kind of node; every kind with one device."""
    world().Barrier()
    found = {path.parent.name: path for path in kept.rglob("*.json")}
    assert len(found) == len(list(kept.rglob("*.json")))
    return found


@pytest.mark.mpi
def test_kinds_are_measured_once_and_then_known_on_any_ranks(tmp_path, counted, capsys):
    rank, size = world().rank, world().size
    kept = folder(tmp_path) / "kept"
    first = planned(kept, "old" if rank % 2 else "new")
    assert counted == ["digits"]
    files = kept_files(kept)
    assert set(files) == ({"new", "old"} if size > 1 else {"new"})
    for kind, path in files.items():
        (device,) = Profile.load(path).devices
        assert device in first.devices[kind == "old" :: 2] and not Profile.load(path).links
    before = {kind: path.read_text() for kind, path in files.items()}
    world().Barrier()
    if rank == 0:
        for path in files.values():
            profile = Profile.load(path)
            devices = tuple(one.model_copy(update={"memory": 7}) for one in profile.devices)
            profile.model_copy(update={"devices": devices}).save(path)
    world().Barrier()
    # Another job: the last rank is of the kind that the first was of.
    wanted = ["new" if other == size - 1 or size == 1 else "old" for other in range(size)]
    second = planned(kept, wanted[rank])
    assert counted == ["digits"]  # nothing was measured but links
    assert [one.works for one in second.devices] == [
        Profile.model_validate_json(before[kind]).devices[0].works for kind in wanted
    ]
    assert all(one.memory > 7 for one in second.devices)
    assert len({id(one) for one in second.devices}) == len(set(wanted))
    assert bool(second.links) == (size > 1)
    assert make_plan(hetmp.read_graph(*digits()), second).plan.ranks == size
    said = capsys.readouterr().out.splitlines()
    if rank == 0:
        title = device_title(CPU)
        both = f"new ({title}), old ({title})" if size > 1 else f"new ({title})"
        names = ", ".join(sorted(set(wanted)))
        assert said == [
            f"measuring the ranks, about 0.3 s: {kept} has no times yet of nodes of kind {both}",
            f"nodes of kind {names}: times read from {kept}, measuring only the links",
        ]


@pytest.mark.mpi(min_size=2)
def test_only_what_is_missing_is_kept(tmp_path, counted):
    kept, last = folder(tmp_path) / "kept", world().rank == world().size - 1
    planned(kept, "new")
    before = kept_files(kept)["new"].read_text()
    profile = planned(kept, "old" if last else "new")
    assert len(counted) == 2
    # What is known counts for this job, too.
    known = Profile.model_validate_json(before).devices[0].works
    assert all(one.works == known for one in profile.devices[:-1])
    assert profile.devices[-1].works != known
    files = kept_files(kept)
    assert set(files) == {"new", "old"} and files["new"].read_text() == before


@pytest.mark.mpi
def test_a_kind_that_has_another_device_now_is_measured_anew(tmp_path, counted, capsys):
    kept, last = folder(tmp_path) / "kept", world().rank == world().size - 1
    planned(kept, "new")
    for _ in range(2):
        profile = planned(kept, "new", slowdown=2.0 if last else 1.0)
        assert [one.slowdown for one in profile.devices] == [1.0] * (world().size - 1) + [2.0]
        assert len(counted) == 2  # the second time both devices are known
    assert len(list(kept.rglob("*.json"))) == 2
    said = capsys.readouterr().out
    told = f"kind new ({device_title(CPU, 2.0)}; only of another device)\n"
    assert said.count(told) == (world().rank == 0)


@pytest.mark.mpi
def test_a_run_is_planned_from_the_folder(tmp_path, monkeypatch, counted):
    rank, size = world().rank, world().size
    kept, out = folder(tmp_path) / "kept", folder(tmp_path) / "run"
    values = {**DIGITS, "profiles": kept, "profile_seconds": 0.3}
    equal = train(train_config(**(values | {"weights": (1.0,) * size})))
    assert counted == [] and not kept.exists()  # not used where weights are given
    for kind in (f"of-{rank}", f"of-{size - 1 - rank}"):
        monkeypatch.setenv("HETMP_NODE_KIND", kind)
        result = train(train_config(**values, out=out))
        same_everywhere(result)
        assert result.loss == pytest.approx(equal.loss, rel=1e-9)
        # One rank alone has nothing to plan.
        assert len(counted) == (size > 1)
    world().Barrier()
    plan = hetmp.Plan.load(out / "plan.json")
    assert plan.ranks == size and bool(plan.predicted_seconds) == (size > 1)
    assert set(kept_files(kept)) == (
        {f"of-{other}" for other in range(size)} if size > 1 else set()
    )


@pytest.mark.mpi(min_size=2)
def test_a_folder_that_cannot_be_used_is_refused_on_all_ranks(tmp_path, monkeypatch, counted):
    monkeypatch.setenv("HETMP_NODE_KIND", "new")
    kept = folder(tmp_path) / "kept"
    values = {"profiles": kept, "profile_seconds": 0.3, "dtype": "float32", "batch_size": 16}
    planned(kept, "new")
    path = kept_files(kept)["new"]
    if world().rank == 0:
        path.write_text(path.read_text()[:-50])
    world().Barrier()
    refused_everywhere(f"Remove {path} to measure the device again", **values)
    with pytest.raises(AgreedError, match="cannot be written, so the profile cannot be stored"):
        planned(path, "new")
    assert counted == ["digits"]
