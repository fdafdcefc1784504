"""What a run records, in every format: the formats say the same, also after a resumption."""

import csv
import json
import math
import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.running import TRAIN, hetmp_run, refused
from hetmp.core.errors import HetmpError
from hetmp.run.config import train_config
from hetmp.run.metrics import KINDS, Metrics
from hetmp.run.metrics.json_lines import plain, read_records
from hetmp.run.train import train

STEPS, EPOCH = 20, 15
FILES = ("steps.csv", "evaluations.csv", "tensorboard")
many = pytest.mark.mpi
few = pytest.mark.few_ranks


def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def run(out, comm=None, **told):
    """Train on all ranks, or on those of *comm*."""
    weights = tuple(float(w) for w in (70, 25, 5, 3, 2)[: (comm or world()).size])
    told = {"weights": weights, "batch_size": 100, "steps": STEPS, "watch": 2, **told}
    train(train_config(model="digits", data="digits", out=out, **told), comm or world())
    world().Barrier()


@pytest.fixture
def out(tmp_path):
    """A folder that all ranks mean."""
    return Path(world().bcast(str(tmp_path))) / "run"


def told(out, kind):
    return [record for record in read_records(out / "metrics.jsonl") if record["kind"] == kind]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(cell, value):
    """Whether a cell of a table says *value*."""
    return cell == "" if value is None else float(cell) == value


def agree(out, ranks):
    """That the tables and the events say what the JSON lines say, and nothing else."""
    steps, evaluations = told(out, "step"), told(out, "evaluation")
    rows = table(out / "steps.csv")
    assert len(rows) == len(steps)
    for row, record in zip(rows, steps, strict=True):
        for name in ("step", "epoch", "loss", "accuracy", "lr", "images", "time"):
            assert same(row[name], record[name]), name
        assert row["skipped"] == str(int(record.get("skipped", False)))
        for kind in KINDS:
            by_rank = record["seconds"][kind]
            for rank in range(ranks):
                here = by_rank[rank] if rank < len(by_rank) else None
                assert same(row[f"{kind}_{rank}"], here)
    rows = table(out / "evaluations.csv")
    assert len(rows) == len(evaluations)
    for row, record in zip(rows, evaluations, strict=True):
        assert row.keys() == record.keys() - {"kind"}
        assert all(same(row[name], record[name]) for name in row)
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()

    def curve(tag):
        return [(event.step, event.value, event.wall_time) for event in events.Scalars(tag)]

    def expected(records, value, after):
        return [(r["step"] + after, pytest.approx(value(r), rel=1e-6), r["time"]) for r in records]

    for name in ("loss", "accuracy", "lr"):
        assert curve(name) == expected(steps, lambda r, name=name: r[name], 1)
    for name in ("loss", "accuracy", "seconds"):
        assert curve(f"test/{name}") == expected(evaluations, lambda r, name=name: r[name], 0)
    for kind in KINDS:
        for rank in range(ranks):
            having = [r for r in steps if rank < len(r["seconds"][kind])]
            wanted = expected(having, lambda r, k=kind, n=rank: r["seconds"][k][n], 1)
            assert curve(f"{kind}/rank_{rank}") == wanted
    speeds = [value for _, value, _ in curve("images_per_second")]
    assert len(speeds) == len(steps)
    assert all(0 < speed < math.inf for speed in speeds)
    [*_, last] = events.Tensors("config")
    [text] = last.tensor_proto.string_val
    assert '    model = "digits"' in text.decode().splitlines()
    return events


@many
@few
def test_every_format_says_the_same(out):
    run(out, metrics=("csv", "tensorboard"))
    if world().rank == 0:
        agree(out, world().size)
        assert "skipped" not in agree(out, world().size).Tags()["scalars"]
        for record in told(out, "step"):
            assert record["images"] == (37 if record["step"] == EPOCH - 1 else 100)
        times = [record["time"] for record in told(out, "step") + told(out, "end")]
        assert times == sorted(times)
        [first, last] = told(out, "evaluation")
        assert (first["step"], last["step"]) == (EPOCH, STEPS)
        assert min(first["seconds"], last["seconds"]) > 0


@many
@few
def test_what_was_lost_is_taken_out_of_every_format(out):
    formats = ("csv", "tensorboard")
    schedule = {"schedule": "constant", "checkpoint_every": "6", "keep": 9}
    run(out, metrics=formats, **schedule)
    lost = told(out, "step")[12:] if world().rank == 0 else []
    if world().rank == 0:
        with (out / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "step", "step"')  # torn by a crash
    world().Barrier()
    checkpoint = str(out / "checkpoints" / "step-00000012.h5")
    alone = world().Split(0 if world().rank == 0 else 1, 0)
    if world().rank == 0:
        train(
            train_config(
                model="digits", data="digits", batch_size=100, steps=STEPS, out=out,
                resume=checkpoint, metrics=formats, **schedule,
            ),
            alone,
        )  # fmt: skip
        steps = told(out, "step")
        assert [record["step"] for record in steps] == list(range(STEPS))
        assert [len(r["seconds"]["compute"]) for r in steps] == [world().size] * 12 + [1] * 8
        assert min(r["time"] for r in steps[12:]) > max(r["time"] for r in lost)
        agree(out, world().size)
        assert len(list((out / "tensorboard").iterdir())) == 2
    world().Barrier()


@many
@few
def test_a_run_that_starts_anew_leaves_nothing_of_the_old_one(out):
    run(out, metrics=("csv", "tensorboard"), steps=9)
    run(out, metrics=("csv", "tensorboard"), steps=4)
    if world().rank == 0:
        assert len(told(out, "step")) == 4
        agree(out, world().size)
        assert len(list((out / "tensorboard").iterdir())) == 1


@many
@few
def test_tables_of_a_resumed_run_have_what_was_told_before_they_were_asked_for(out):
    schedule = {"schedule": "constant", "checkpoint_every": "6", "keep": 9}
    run(out, steps=12, **schedule)
    if world().rank == 0:
        assert not any((out / name).exists() for name in FILES)
    world().Barrier()
    run(out, resume="auto", metrics=("csv",), **schedule)
    if world().rank == 0:
        assert [int(row["step"]) for row in table(out / "steps.csv")] == list(range(STEPS))
        assert not (out / "tensorboard").exists()
        assert not list(out.glob(".*.part"))


@many
@few
def test_skipped_steps_and_losses_that_are_no_numbers(out):
    with Metrics(world_group(), out, ("csv", "tensorboard")) as metrics:
        seconds = {kind: [0.5, 0.25] for kind in KINDS}
        for step, loss in enumerate((1.0, math.nan, math.inf, 2.0)):
            metrics.write(
                "step", step=step, epoch=0, loss=loss, accuracy=0.5, lr=0.1, images=8,
                seconds=seconds, **({"skipped": True} if not math.isfinite(loss) else {}),
            )  # fmt: skip
        metrics.finish()
    if world().rank == 0:
        assert [row["loss"] for row in table(out / "steps.csv")] == ["1.0", "", "", "2.0"]
        assert [row["skipped"] for row in table(out / "steps.csv")] == ["0", "1", "1", "0"]
        events = EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        assert [e.step for e in events.Scalars("loss")] == [1, 4]
        assert [e.step for e in events.Scalars("skipped")] == [2, 3]
        assert [e.value for e in events.Scalars("images_per_second")] == [4.0] * 4
    world().Barrier()


def world_group():
    from hetmp.cluster import Group

    return Group(world())


@pytest.fixture
def full_disk(monkeypatch):
    """Lets no file of rank 0 grow any more in the middle of a step."""
    from hetmp.run.step import TrainStep

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def at(step, path):
        taken = []

        def train_step(*given):
            taken.append(None)
            if len(taken) == step and world().rank == 0:
                size = path.stat().st_size + 20
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            return whole_step(*given)

        monkeypatch.setattr(TrainStep, "take", train_step)

    whole_step = TrainStep.take
    yield at
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@many
@few
@pytest.mark.parametrize("step", [3, STEPS])
def test_a_full_disk_is_told_in_words_on_every_rank(out, full_disk, step):
    full_disk(step, out / "metrics.jsonl")
    with pytest.raises(HetmpError, match=f"the metrics in {out} cannot be written: File too large"):
        run(out)
    if world().rank == 0:
        assert 0 < len(told(out, "step")) < STEPS


@many
@few
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_made_is_told_on_every_rank(out, name):
    if world().rank == 0:
        out.mkdir()
        (out / name).mkdir() if name != "tensorboard" else (out / name).touch()
    world().Barrier()
    with pytest.raises(HetmpError, match=name):
        run(out, metrics=("csv", "tensorboard"))


# --- without ranks --------------------------------------------------------------------------------


def test_what_json_has_no_word_for_is_null():
    told = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": (1, "x", None, True)}
    assert json.dumps(plain(told), allow_nan=False) == (
        '{"a": null, "b": [1.5, null, {"c": null}], "d": [1, "x", null, true]}'
    )


def test_formats_are_checked_and_need_a_folder(tmp_path):
    told = {"model": "digits", "data": "digits"}
    with pytest.raises(HetmpError, match="unknown metrics 'tensorbord': did you mean 'tensorboa"):
        train_config(**told, out=tmp_path, metrics=("csv", "tensorbord"))
    with pytest.raises(HetmpError, match="metrics csv needs a folder for its files: give --out"):
        train_config(**told, metrics=("csv",))


def test_a_missing_package_is_one_message_before_the_run(tmp_path):
    package = tmp_path / "tensorboard"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it is not here')")
    words = (*TRAIN, "--out", tmp_path / "run", "--metrics", "csv,tensorboard")
    for ranks in (None, 3):
        done = hetmp_run(*words, ranks=ranks, PYTHONPATH=str(tmp_path))
        said = refused(done, "package tensorboard", "it is not here", "install hetmp[tensorboard]")
        assert "rank" not in said
        assert done.stdout == ""
    assert not (tmp_path / "run").exists()
