"""A run that is taken up again, on other ranks, has the curve of one that was never broken off."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import hetmp
from helpers.saving import ranks, shared, world
from hetmp.run.config import train_config
from hetmp.run.train import train

pytestmark = [pytest.mark.mpi, pytest.mark.few_ranks]

STEPS = 30


def config(out: Path, **values):
    return train_config(
        model="digits", data="digits", dtype="float64", batch_size=100, steps=STEPS, out=out,
        **values,
    )  # fmt: skip


def curve(out: Path, kind: str = "step"):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == kind], records


def whole_run(folder: Path, **values) -> Path:
    """Broken off at no point; every seventh step is kept."""
    out = folder / "whole"
    train(config(out, checkpoint_every="7", keep=100, **values), world())
    world().Barrier()
    return out


def broken_off(whole: Path, out: Path, step: int) -> None:
    """The folder of a run that was killed after the checkpoint of *step*."""
    if world().rank == 0:
        kept = out / "checkpoints"
        kept.mkdir(parents=True)
        for file in (whole / "checkpoints").glob("step-*.h5"):
            if int(file.stem[5:]) <= step:
                (kept / file.name).write_bytes(file.read_bytes())
        text = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
        # It had come three steps further, and was writing a line and a checkpoint.
        (out / "metrics.jsonl").write_text("".join(text[: step + 4]) + '{"kind": "st')
        (kept / ".step-00000099.h5.part").write_text("half")
    world().Barrier()


@pytest.mark.parametrize("values", [{"optimizer": "adamw", "lr": 0.01}, {"schedule": "step"}])
def test_a_resumed_run_has_the_same_curve(tmp_path, values):
    folder = shared(tmp_path)
    whole = whole_run(folder, **values)
    expected = curve(whole)[0]
    assert len(expected) == STEPS
    for m, step in zip(range(1, world().size + 1), (7, 14, 21, 28, 14), strict=False):
        out = folder / f"on {m}"
        broken_off(whole, out, step)
        some = ranks(range(m))
        if some is not None:
            weights = [1.0, 3.0, 2.0, 0.0, 2.0][:m]
            result = train(
                config(out, checkpoint_every="7", resume="auto", weights=weights, **values), some
            )
            assert result.steps == STEPS
        world().Barrier()
        found, told = curve(out)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        evaluated, before = curve(out, "evaluation")[0], curve(whole, "evaluation")[0]
        np.testing.assert_allclose(evaluated, before, rtol=1e-10)
        assert [r["step"] for r in told if r["kind"] == "step"] == list(range(STEPS))
        assert [r["resumed"] for r in told if r["kind"] == "run"] == [0, step]
        with h5py.File(out / "checkpoints" / "latest.h5") as file:
            np.testing.assert_allclose(file["training/steps/loss"][()], expected, rtol=1e-10)
        assert not list((out / "checkpoints").glob(".*"))


def test_auto_passes_over_damaged_checkpoints(tmp_path, capfd):
    folder = shared(tmp_path)
    whole = whole_run(folder)
    out = folder / "broken"
    broken_off(whole, out, 21)
    kept = out / "checkpoints"
    if world().rank == 0:
        with h5py.File(kept / "step-00000021.h5", "r+") as file:
            file["model/features.conv1.weight"][0, 0, 0, 0] = 7
        torn = kept / "step-00000014.h5"
        torn.write_bytes(torn.read_bytes()[:5000])
    world().Barrier()
    train(config(out, resume="auto"), world())
    world().Barrier()
    np.testing.assert_allclose(curve(out)[0], curve(whole)[0], rtol=1e-10)
    told = capfd.readouterr().out
    if world().rank == 0:
        assert "step-00000021.h5: /model/features.conv1.weight is damaged" in told
        assert "step-00000014.h5 cannot be opened: it is torn" in told
        assert "resumed from" in told and "step-00000007.h5: 7 steps" in told


def test_a_finished_run_has_nothing_to_do(tmp_path):
    folder = shared(tmp_path)
    whole = whole_run(folder)
    before = curve(whole)[0]
    result = train(config(whole, resume="auto"), world())
    assert result.steps == STEPS and result.loss == before[-1]
    world().Barrier()
    assert curve(whole)[0] == before


def test_auto_starts_anew_where_there_is_nothing(tmp_path, capfd):
    out = shared(tmp_path) / "new"
    train(config(out, resume="auto", checkpoint_every="1epoch"), world())
    world().Barrier()
    assert len(curve(out)[0]) == STEPS
    names = sorted(file.name for file in (out / "checkpoints").iterdir())
    assert names == ["latest.h5", "step-00000015.h5", "step-00000030.h5"]
    if world().rank == 0:
        assert "starting anew" in capfd.readouterr().out


def test_what_is_kept(tmp_path):
    out = shared(tmp_path) / "run"
    train(config(out, checkpoint_every="4", keep=2, keep_every=12), world())
    world().Barrier()
    names = sorted(file.name for file in (out / "checkpoints").iterdir())
    kept = [f"step-000000{step}.h5" for step in (12, 24, 28, 30)]
    assert names == ["latest.h5", *kept]
    assert (out / "checkpoints" / "latest.h5").resolve().name == kept[-1]


def test_another_run_is_refused(tmp_path):
    folder = shared(tmp_path)
    whole = whole_run(folder)
    last = whole / "checkpoints" / "step-00000028.h5"
    with pytest.raises(hetmp.HetmpError, match=r"a run with lr 0\.05, but this run has 0\.5"):
        train(config(folder / "other", resume=str(last), lr=0.5), world())
    with pytest.raises(hetmp.HetmpError, match="is not a checkpoint of a training run"):
        train(config(folder / "other", resume=str(whole / "model.h5")), world())
    with pytest.raises(hetmp.HetmpError, match="there is no"):
        train(config(folder / "other", resume=str(folder / "nothing")), world())


def test_saving_behind_gives_the_same_run(tmp_path):
    folder = shared(tmp_path)
    whole = whole_run(folder)
    out = folder / "behind"
    train(config(out, checkpoint_every="7", keep=100, save_behind=True), world())
    world().Barrier()
    assert curve(out)[0] == curve(whole)[0]
    with (
        h5py.File(whole / "checkpoints" / "step-00000014.h5") as one,
        h5py.File(out / "checkpoints" / "step-00000014.h5") as other,
    ):
        for name in one["model"]:
            assert (one["model"][name][()] == other["model"][name][()]).all()


def test_a_checkpoint_that_cannot_be_written_stops_the_run_or_not(tmp_path, capfd):
    folder = shared(tmp_path)
    for choice in ("continue", "stop"):
        out = folder / choice
        if world().rank == 0:
            (out).mkdir()
            (out / "checkpoints").write_text("in the way")
        world().Barrier()
        chosen = config(out, checkpoint_every="10", on_save_error=choice)
        if choice == "stop":
            with pytest.raises(hetmp.HetmpError, match=r"step-00000010\.h5"):
                train(chosen, world())
        else:
            assert train(chosen, world()).steps == STEPS
            if world().rank == 0:
                assert "training continues, and the last" in capfd.readouterr().out
