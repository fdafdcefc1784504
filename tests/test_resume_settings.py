"""A run that is taken up again in the middle, with all that changes from step to step.

Averages, a warm-up, the scale of a loss in float16, parts of a batch, images changed at random.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import hetmp
from data_files import digit_parts, write_npz
from data_folders import write_folder
from hetmp.config import train_config
from hetmp.config_file import read_config
from hetmp.train import train
from saving import ranks, shared, uneven, world

pytestmark = pytest.mark.mpi

STEPS = 14
TOLD = {
    "model": "digits",
    "data": "npz",
    "batch_size": 8,
    "steps": STEPS,
    "checkpoint_every": "3",
    "keep": 100,
    "lr": 0.02,
    "average": 0.8,
    "warmup": 6,
    "accumulate": 3,
    "label_smoothing": 0.1,
    "clip": 5.0,
    "flip": True,
    "crop": 1,
}


def digits_in(folder: Path) -> Path:
    """An archive of 40 digits to train on; rank 0 writes it."""
    path = folder / "digits.npz"
    if world().rank == 0:
        names = ("x_train", "y_train", "x_test", "y_test")
        write_npz(path, **dict(zip(names, digit_parts(), strict=True)))
    world().Barrier()
    return path


def run(out: Path, comm=None, weights=None, **told) -> None:
    """Train on all ranks, or on those of *comm*."""
    weights = weights or uneven(world().size)
    train(train_config(out=out, weights=weights, **{**TOLD, **told}), comm or world())


def told_by(out: Path, kind: str = "step") -> list[float]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == kind]


def broken_off(whole: Path, out: Path, step: int) -> str:
    """The folder of a run that was killed at *step*, and its checkpoint."""
    file = whole / "checkpoints" / f"step-{step:08d}.h5"
    if world().rank == 0:
        (out / "checkpoints").mkdir(parents=True)
        (out / "checkpoints" / file.name).write_bytes(file.read_bytes())
        lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line).get("step", -1) < step]
        (out / "metrics.jsonl").write_text("".join(kept))
    world().Barrier()
    return str(out / "checkpoints" / file.name)


def tensors(file: Path) -> dict[str, np.ndarray]:
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and name.split("/")[0] in ("model", "buffers", "average"):
            found[name] = item[()]

    with h5py.File(file) as opened:
        opened.visititems(visit)
    return found


@pytest.mark.parametrize("step", [3, 9])
@pytest.mark.parametrize("precision", ["float64", "float16"])
def test_a_resumed_run_has_the_curve_of_one_that_was_not_broken_off(tmp_path, precision, step):
    """In the warm-up and after it, both within an epoch; the data has moved in between."""
    folder = shared(tmp_path)
    path = digits_in(folder)
    how = {"dtype": "float64"} if precision == "float64" else {"autocast": (precision,)}
    how["optimizer"] = "adamw"
    whole, again = folder / "whole", folder / "again"
    run(whole, data_path=path, **how)
    world().Barrier()
    broken_off(whole, again, step)
    moved = folder / "elsewhere" / "other.npz"
    if world().rank == 0:
        moved.parent.mkdir()
        path.rename(moved)
    world().Barrier()
    run(again, data_path=moved, resume="auto", **how)
    world().Barrier()
    expected = told_by(whole)
    assert len(expected) == STEPS
    # On the same ranks not a bit differs.
    assert told_by(again) == expected
    assert told_by(again, "evaluation") == told_by(whole, "evaluation")
    last = Path("checkpoints") / f"step-{STEPS:08d}.h5"
    for name in (last, "model.h5"):
        one, other = tensors(whole / name), tensors(again / name)
        assert one.keys() == other.keys()
        for tensor, values in one.items():
            np.testing.assert_array_equal(other[tensor], values)
    assert any(name.startswith("average/") for name in tensors(whole / last))


def test_other_ranks_go_on_with_averages_parts_and_changed_images(tmp_path):
    folder = shared(tmp_path)
    path, whole, again = digits_in(folder), folder / "whole", folder / "again"
    run(whole, data_path=path, dtype="float64")
    world().Barrier()
    broken_off(whole, again, 6)
    m = (world().size + 1) // 2
    some = ranks(range(m))
    if some is not None:
        weights = uneven(m, turned=True)
        run(again, some, weights, data_path=path, dtype="float64", resume="auto")
    hetmp.Group(world()).meet()
    world().Barrier()
    np.testing.assert_allclose(told_by(again), told_by(whole), rtol=1e-9)
    for kind in ("evaluation", "end"):
        np.testing.assert_allclose(told_by(again, kind), told_by(whole, kind), rtol=1e-9)
    one, other = (tensors(out / "model.h5") for out in (whole, again))
    for tensor, values in one.items():
        np.testing.assert_allclose(other[tensor], values, rtol=1e-8, atol=1e-10)


def scale_of(file: str) -> dict[str, float]:
    with h5py.File(file) as opened:
        return json.loads(opened["training/schedule"].asstr()[()])["scaler"]


def test_the_scale_of_the_loss_goes_on_from_the_checkpoint(tmp_path):
    """A scale that overflows halves itself: what is saved later tells where it went on from."""
    folder = shared(tmp_path)
    path, out = digits_in(folder), folder / "run"
    how = {"data_path": path, "autocast": ("float16",), "steps": 6, "schedule": "constant"}
    run(out, **how)
    world().Barrier()
    file = out / "checkpoints" / "step-00000003.h5"
    before = scale_of(file)
    other = {**before, "scale": before["scale"] / 8, "_growth_tracker": 100}
    changed = folder / "changed"
    broken_off(out, changed, 3)
    kept = changed / "checkpoints" / file.name
    if world().rank == 0:
        with h5py.File(kept, "r+") as opened:
            told = json.loads(opened["training/schedule"].asstr()[()])
            attributes = dict(opened["training/schedule"].attrs)
            del opened["training/schedule"]
            opened["training/schedule"] = json.dumps({**told, "scaler": other})
            for name, value in attributes.items():
                if "sha" not in name and "digest" not in name:
                    opened["training/schedule"].attrs[name] = value
    world().Barrier()
    run(changed, resume=str(kept), **how)
    world().Barrier()
    after = scale_of(changed / "checkpoints" / "step-00000006.h5")
    assert after["scale"] == other["scale"]
    assert after["_growth_tracker"] == 103


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"crop": 2}, "is of a run with crop 1, this one has 2"),
        ({"flip": False}, "is of a run with flip True, this one has False"),
        ({"label_smoothing": 0.2}, r"label_smoothing 0\.1, this one has 0\.2"),
        ({"accumulate": 2}, "accumulate 3, this one has 2"),
        ({"average": 0.9}, r"average 0\.8, this one has 0\.9"),
        ({"warmup": 5}, "warmup 6, this one has 5"),
        ({"data": "folder"}, "is of a run with data npz, this one has folder"),
        ({"classes": 11}, "."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_refused_in_words(tmp_path, told, words):
    folder = shared(tmp_path)
    path, out = digits_in(folder), folder / "run"
    if told.get("data") == "folder":
        images, labels = digit_parts()[:2]
        if world().rank == 0:
            write_folder(folder / "png", images[:, None], labels, tuple(map(str, range(10))))
        world().Barrier()
        told = {**told, "data_path": folder / "png"}
    run(out, data_path=path, steps=3, schedule="constant")
    world().Barrier()
    again = {"data_path": path, "steps": 5, "schedule": "constant", "resume": str(out), **told}
    with pytest.raises(hetmp.HetmpError, match=words) as refusal:
        run(folder / "again", **again)
    assert len(set(world().allgather(str(refusal.value)))) == 1


# --- a run that is repeated


@pytest.mark.parametrize("planned", [False, True], ids=["weights", "planned"])
def test_a_runs_own_file_repeats_it_to_the_bit(tmp_path, planned):
    folder = shared(tmp_path)
    path, out, again = digits_in(folder), folder / "first", folder / "again"
    weights = {"weights": "auto", "profile_seconds": 0.1} if planned else {}
    more = {"dtype": "float32", "seed": 5, "optimizer_options": {"nesterov": True}, **weights}
    run(out, data_path=path, **more)
    world().Barrier()
    fields = read_config(out / "config.toml").fields
    assert ("plan" in fields) == (planned and world().size > 1)
    assert "out" not in fields
    train(train_config(**fields, out=again), world())
    world().Barrier()
    expected = told_by(out)
    assert len(expected) == STEPS
    assert told_by(again) == expected
    assert told_by(again, "evaluation") == told_by(out, "evaluation")
    assert (again / "plan.json").read_text() == (out / "plan.json").read_text()
