"""A checkpoint is worth what the run that wrote it said, on any ranks."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.running import TRAIN, hetmp_run, refused
from helpers.saving import ranks, shared, uneven, world
from hetmp import data, models
from hetmp.core.errors import HetmpError
from hetmp.run.config import train_config
from hetmp.run.evaluate import evaluate_checkpoint
from hetmp.run.train import train

pytestmark = pytest.mark.few_ranks

EPOCH = 15  # steps of 100 images


def trained(folder: Path, **values) -> Path:
    """The folder of a short run on all ranks that saved at every epoch."""
    out = folder / "run"
    values = {"model": "digits", "data": "digits", "dtype": "float64", **values}
    weights = uneven(world().size)
    config = train_config(
        batch_size=100, weights=weights, checkpoint_every="1epoch", out=out, **values
    )
    train(config, world())
    world().Barrier()
    return out


def recorded(out: Path) -> dict[int, tuple[float, float]]:
    """Steps -> (loss, accuracy) of the run's evaluations."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: (r["loss"], r["accuracy"]) for r in records if r["kind"] == "evaluation"}


def checkpoint(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}.h5"


@pytest.mark.mpi
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_the_figures_are_those_of_the_run_on_any_ranks(tmp_path, dtype, tolerance):
    out = trained(shared(tmp_path), epochs=2, dtype=dtype)
    told = recorded(out)
    assert told.keys() == {EPOCH, 2 * EPOCH}
    files = {out / "model.h5": 2 * EPOCH, checkpoint(out, EPOCH): EPOCH}
    size = world().size
    for m in sorted({1, (size + 1) // 2, size}):
        some = ranks(range(m))
        if some is not None:
            for file, step in files.items():
                given = {"weights": uneven(m, turned=True), "batch_size": 77}
                found = evaluate_checkpoint(file, given, some)
                loss, accuracy = told[step]
                assert found.loss == pytest.approx(loss, rel=tolerance)
                assert found.accuracy == accuracy
                assert (found.steps, found.images, found.ranks) == (step, 360, m)
                assert (found.model, found.data, found.dtype) == ("digits", "digits", dtype)
        hetmp.Group(world()).meet()  # without burning the others' cores


@pytest.mark.mpi
def test_a_folder_stands_for_its_network_or_its_newest_sound_checkpoint(tmp_path):
    out = trained(shared(tmp_path), epochs=2)
    found = evaluate_checkpoint(out, {}, world())
    assert (found.file, found.passed_over) == (str(out / "model.h5"), ())
    found = evaluate_checkpoint(out / "checkpoints" / "latest.h5", {}, world())
    assert found.file == str(checkpoint(out, 2 * EPOCH))
    if world().rank == 0:
        (out / "model.h5").unlink()
        with h5py.File(checkpoint(out, 2 * EPOCH), "r+") as file:
            file["model/features.conv1.weight"][0, 0, 0, 0] = 7
    world().Barrier()
    for folder in (out, out / "checkpoints"):
        found = evaluate_checkpoint(folder, {}, world())
        assert found.file == str(checkpoint(out, EPOCH))
        (why,) = found.passed_over
        assert "features.conv1.weight is damaged" in why
    if world().rank == 0:
        checkpoint(out, EPOCH).unlink()
    world().Barrier()
    with pytest.raises(HetmpError, match=r"(?s)no sound checkpoint .*conv1\.weight is damaged"):
        evaluate_checkpoint(out, {}, world())


@pytest.mark.mpi
def test_a_network_of_ones_own_and_synthetic_data(tmp_path):
    synthetic = {"data": "synthetic", "shape": (2, 9, 9), "classes": 3, "samples": 400, "seed": 4}
    name = "own_network:build"
    out = trained(shared(tmp_path), model=name, epochs=1, **synthetic)
    ((loss, accuracy),) = recorded(out).values()
    found = evaluate_checkpoint(out, {"model": name}, world())
    assert found.loss == pytest.approx(loss, rel=1e-10)
    assert (found.accuracy, found.images) == (accuracy, 80)
    with pytest.raises(
        HetmpError, match="own_network:build, and a file must not choose which code"
    ):
        evaluate_checkpoint(out, {}, world())
    fewer = evaluate_checkpoint(out, {"model": name, "samples": 50}, world())
    assert fewer.images == 10


@pytest.mark.mpi
def test_a_plan_with_a_rank_left_out(tmp_path):
    out = trained(shared(tmp_path), epochs=1)
    size = world().size
    graph = hetmp.read_graph(models.build("digits", (1, 8, 8), 10))
    plan = hetmp.plan_from_weights(graph, [1.0] * max(1, size - 1))
    plan = plan.with_layer("features.conv2", scheme="inputs").spread(range(size > 1, size), size)
    file = out / "mine.json"
    if world().rank == 0:
        plan.save(file)
    world().Barrier()
    found = evaluate_checkpoint(out, {"plan": file}, world())
    ((loss, accuracy),) = recorded(out).values()
    assert found.loss == pytest.approx(loss, rel=1e-10)
    assert (found.accuracy, found.ranks) == (accuracy, size)


@pytest.mark.mpi
def test_a_file_of_a_loop_of_ones_own_is_told_what_it_is_of(tmp_path):
    path = shared(tmp_path) / "mine.h5"
    torch.manual_seed(3)
    module = models.build("digits", (1, 8, 8), 10).double()
    hetmp.save(path, hetmp.slice_model(module, uneven(world().size), world()))
    with pytest.raises(
        HetmpError, match=r"mine\.h5 does not name its model and data: give --model"
    ):
        evaluate_checkpoint(path, {}, world())
    with pytest.raises(HetmpError, match="does not name its data: give --data"):
        evaluate_checkpoint(path, {"model": "digits"}, world())
    found = evaluate_checkpoint(path, {"model": "digits", "data": "digits"}, world())
    test = data.load("digits").test
    with torch.no_grad():
        scores = module.eval()(test.images.double())
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(scores, test.labels)))
    assert found.accuracy == float((scores.argmax(1) == test.labels).double().mean())
    assert found.steps is None


REFUSED = {
    "another network": ({"model": "paper-mnist"}, "cannot take images|the checkpoint has"),
    "a smaller network": ({"model": "test_evaluate:first_layers"}, "which the model does not"),
    "an unknown network": ({"model": "digit"}, "did you mean 'digits'"),
    "unknown data": ({"data": "digitz"}, "unknown data set 'digitz'"),
    "labels of another kind": ({"data": "digits-segmentation"}, "need 11×8×8"),
    "sizes that do not apply": ({"classes": 3}, "classes=3 does not apply to data set 'digits'"),
    "other images": ({"data": "synthetic", "shape": (1, 16, 16)}, "in the checkpoint and"),
    "weights of no use": ({"weights": (-1.0,)}, "weight -1.0 of rank 0 is negative"),
    "no plan": ({"plan": "nowhere.json"}, r"nowhere\.json cannot be read"),
    "an empty batch": ({"batch_size": 0}, "batch_size"),
}


def first_layers(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network without its last linear layer, of whose inputs it makes the scores."""
    module = models.build("digits", shape, classes)
    module.classifier = nn.Flatten()
    return module


@pytest.mark.mpi
def test_what_does_not_fit_is_refused_on_every_rank(tmp_path):
    out = trained(shared(tmp_path), steps=1)
    for given, words in REFUSED.values():
        with pytest.raises(HetmpError, match=words):
            evaluate_checkpoint(out, given, world())
    with pytest.raises(HetmpError, match="there is no checkpoint"):
        evaluate_checkpoint(out / "nothing.h5", {}, world())
    file = out / "model.h5"
    if world().rank == 0:
        with h5py.File(file, "r+") as opened:
            opened["training"].pop("config")
    world().Barrier()
    with pytest.raises(HetmpError, match="does not name its model and data"):
        evaluate_checkpoint(out, {}, world())
    if world().rank == 0:
        file.write_bytes(file.read_bytes()[:5000])
    world().Barrier()
    with pytest.raises(HetmpError, match=r"model\.h5 cannot be opened: it is torn"):
        evaluate_checkpoint(out, {}, world())


# --- the program


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks."""
    out = tmp_path_factory.mktemp("evaluate") / "run"
    done = hetmp_run(*TRAIN, "--steps", 5, "--weights", "3,1", "--out", out, ranks=2)
    assert done.returncode == 0, done.stderr
    return out


def test_the_program_says_it_in_a_line_or_in_json(run, tmp_path):
    loss, accuracy = recorded(run)[5]
    for number in (None, 3):
        done = hetmp_run("evaluate", run, "--out", tmp_path / "worth.json", ranks=number)
        assert done.returncode == 0, done.stderr
        on = "3 ranks" if number else "1 rank"
        assert done.stdout == (
            f"{100 * accuracy:.2f} % test accuracy, loss {loss:.4f}, over 360 images, on {on}: "
            f"{run / 'model.h5'} (5 steps)\n"
        )
        assert json.loads((tmp_path / "worth.json").read_text())["ranks"] == (number or 1)
    done = hetmp_run("evaluate", run / "model.h5", "--weights", "1,2", "--json", ranks=2)
    found = json.loads(done.stdout)
    np.testing.assert_allclose([found.pop("loss"), found.pop("accuracy")], [loss, accuracy], 1e-5)
    assert found == {
        "file": str(run / "model.h5"),
        "model": "digits",
        "data": "digits",
        "dtype": "float32",
        "steps": 5,
        "images": 360,
        "ranks": 2,
        "passed_over": [],
    }


def test_a_loss_that_is_no_number_is_null(tmp_path):
    module = models.build("digits", (1, 8, 8), 10)
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)
    torch.save(module.state_dict(), tmp_path / "nan.pt")
    assert hetmp_run("import", tmp_path / "nan.pt", tmp_path / "nan.h5").returncode == 0
    told = ("--model", "digits", "--data", "digits", "--json")
    done = hetmp_run("evaluate", tmp_path / "nan.h5", *told)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.h5"], "there is no checkpoint nowhere.h5"),
        (["RUN", "--data", "digitz"], "did you mean 'digits'"),
        (["RUN", "--weights", "1,2,3"], "3 weights"),
        (["RUN", "--out", "nowhere/worth.json"], "nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(run, arguments, words):
    done = hetmp_run("evaluate", *(run if word == "RUN" else word for word in arguments), ranks=2)
    refused(done, words)
    assert done.returncode == 2
    assert done.stdout == ""


def test_the_help_fits_80_columns():
    text = hetmp_run("evaluate", "--help").stdout
    assert "--weights" in text
    assert max(map(len, text.splitlines())) <= 80
