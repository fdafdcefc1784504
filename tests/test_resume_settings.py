"""A run that is taken up again in the middle, with all that changes from step to step.

Averages, a warm-up, the scale of a loss in float16, parts of a batch, images changed at random.
"""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import hetmp
from helpers.data_files import digit_parts, write_npz
from helpers.data_folders import write_folder
from helpers.saving import ranks, shared, uneven, world
from hetmp.run.config import train_config
from hetmp.run.config_file import read_config
from hetmp.run.train import train

pytestmark = [pytest.mark.mpi, pytest.mark.few_ranks]

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


def scale_of(file: Path) -> dict[str, float]:
    """The state of the loss's scale in a checkpoint."""
    with h5py.File(file) as opened:
        return json.loads(opened["training/schedule"].asstr()[()])["scaler"]


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
    if precision == "float16":
        scale = scale_of(again / last)
        assert scale == scale_of(whole / last)
        # Begun anew at the checkpoint it could not have counted so many good steps.
        assert scale["_growth_tracker"] > STEPS - step


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


REFUSED = {
    "crop 1, but this run has 2": {"crop": 2},
    "flip True, but this run has False": {"flip": False},
    "label_smoothing 0.1, but this run has 0.2": {"label_smoothing": 0.2},
    "accumulate 3, but this run has 2": {"accumulate": 2},
    "average 0.8, but this run has 0.9": {"average": 0.9},
    "warmup 6, but this run has 5": {"warmup": 5},
    "mean None, but this run has [90.0]": {"mean": (90.0,), "std": (80.0,)},
    "data npz, but this run has folder": {"data": "folder", "data_path": "png"},
}


def test_another_run_is_refused_in_words(tmp_path):
    folder = shared(tmp_path)
    path, out = digits_in(folder), folder / "run"
    images, labels = digit_parts()[:2]
    if world().rank == 0:
        write_folder(folder / "png", images[:, None], labels, tuple(map(str, range(10))), part="")
    world().Barrier()
    run(out, data_path=path, steps=6, schedule="constant")
    world().Barrier()
    again = {"data_path": path, "steps": 7, "schedule": "constant", "resume": str(out)}
    for words, told in REFUSED.items():
        if "data_path" in told:
            told = {**told, "data_path": folder / told["data_path"]}
        saved = re.escape(f"was saved by a run with {words}")
        with pytest.raises(hetmp.HetmpError, match=saved) as refusal:
            run(folder / "again", **{**again, **told})
        assert len(set(world().allgather(str(refusal.value)))) == 1
    # Nothing but those stood in its way.
    run(folder / "again", **again)
    world().Barrier()
    assert len(told_by(folder / "again")) == 1


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
