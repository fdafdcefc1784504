"""A whole training run equals the one that plain torch makes of the same batches."""

import json
from pathlib import Path

import h5py
import pytest
import torch

import hetmp
from helpers.plain_training import STEPS, plain_run
from hetmp import data, models
from hetmp.run.config import train_config
from hetmp.run.train import train

pytestmark = pytest.mark.mpi


def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


def uneven(size: int) -> tuple[float, ...]:
    """70:25:5-like weights, the last rank with nothing where there are at least three."""
    weights = [70.0, 25.0, 5.0, 3.0, 2.0][:size]
    if size > 2:
        weights[-1] = 0.0
    return tuple(weights)


def run(tmp_path: Path, weights: tuple[float, ...], **values):
    """Train on all ranks and return rank 0's records, on every rank."""
    comm = world()
    out = Path(comm.bcast(str(tmp_path))) / "run"
    values = {"model": "digits", "data": "digits", "dtype": "float64", **values}
    result = train(train_config(weights=weights, out=out, **values))
    comm.Barrier()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return out, result, records


def losses(records) -> torch.Tensor:
    return torch.tensor([r["loss"] for r in records if r["kind"] == "step"], dtype=torch.float64)


@pytest.mark.parametrize(("optimizer", "clip"), [("sgd", None), ("sgd", 0.5), ("adamw", 2.0)])
def test_the_curve_is_plain_torchs(tmp_path, optimizer, clip):
    weights = uneven(world().size)
    _, result, records = run(tmp_path, weights, optimizer=optimizer, clip=clip, steps=STEPS)
    curve, _, accuracy = plain_run(optimizer, clip)
    # An adaptive optimizer divides a bias gradient that is zero but for rounding by itself.
    tolerance = 1e-10 if optimizer == "sgd" else 1e-8
    assert torch.allclose(losses(records), curve, rtol=tolerance, atol=0)
    assert result.accuracy == pytest.approx(accuracy, abs=1e-12)


def test_the_file_holds_the_network_that_torch_trains(tmp_path):
    out, _, _ = run(tmp_path, uneven(world().size), steps=STEPS)
    _, net, _ = plain_run("sgd", None)
    with h5py.File(out / "model.h5") as file:
        held = {**file["model"], **file["buffers"]}
        assert held.keys() == net.state_dict().keys()
        for name, tensor in net.state_dict().items():
            stored = torch.as_tensor(held[name][()])
            assert stored.dtype == tensor.dtype and stored.shape == tensor.shape
            error = (stored - tensor).double().norm()
            assert error <= 1e-9 * max(1.0, float(tensor.double().norm())), name
    assert not list(out.glob("*.part"))
    assert hetmp.Plan.load(out / "plan.json").ranks == world().size


def test_float32_curves_stay_within_1e_4_over_500_steps(tmp_path):
    """Of a smooth network: where there are kinks, plain torch leaves its own curve by more."""
    smooth = {"model": "own_network:smooth", "lr": 0.01, "steps": 500}
    _, result, records = run(tmp_path, uneven(world().size), dtype="float32", **smooth)
    curve, _, accuracy = plain_run("sgd", None, dtype=torch.float32, **smooth)
    assert torch.allclose(losses(records), curve, rtol=1e-4, atol=0)
    assert result.accuracy == pytest.approx(accuracy, abs=0.003)  # an image may sit on the fence


def test_float32_curves_of_a_network_with_kinks_agree_in_norm(tmp_path):
    _, result, records = run(tmp_path, uneven(world().size), dtype="float32", steps=100)
    curve, _, _ = plain_run("sgd", None, dtype=torch.float32, steps=100)
    assert (losses(records) - curve).norm() <= 1e-3 * curve.norm()
    assert result.accuracy >= 0.97


def test_records_say_where_every_ranks_seconds_went(tmp_path):
    size = world().size
    _, _, records = run(tmp_path, uneven(size), steps=3)
    assert [r["kind"] for r in records] == [
        "run", "step", "step", "step", "layers", "memory", "evaluation", "end"
    ]  # fmt: skip
    assert records[0]["ranks"] == size
    assert records[0]["config"]["model"] == "digits"
    for record in records[1:4]:
        seconds = record["seconds"]
        assert all(len(seconds[part]) == size for part in ("compute", "exchange", "waiting"))
        assert all(value > 0 for value in seconds["compute"])
        assert all(value >= 0 for value in seconds["waiting"])
        assert (max(seconds["exchange"]) > 0) == (size > 1)


def test_a_plan_file_is_obeyed(tmp_path):
    comm = world()
    folder = Path(comm.bcast(str(tmp_path)))
    digits = data.load("digits", seed=0)
    graph = hetmp.read_graph(models.build("digits", digits.input_shape, digits.classes))
    plan = hetmp.plan_from_weights(graph, uneven(comm.size))
    names = [layer.name for layer in plan.layers]
    plan = plan.with_layer(names[1], scheme="inputs").with_layer(names[-1], scheme="whole")
    if comm.rank == 0:
        plan.save(folder / "mine.json")
    comm.Barrier()
    out = folder / "planned"
    train(
        train_config(
            model="digits",
            data="digits",
            dtype="float64",
            steps=STEPS,
            plan=folder / "mine.json",
            out=out,
        )
    )
    comm.Barrier()
    assert hetmp.Plan.load(out / "plan.json") == plan
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert torch.allclose(losses(records), plain_run("sgd", None)[0], rtol=1e-10, atol=0)


def test_a_users_own_network_and_synthetic_data(tmp_path):
    _, result, records = run(
        tmp_path,
        uneven(world().size),
        model="own_network:build",
        data="synthetic",
        shape=(2, 9, 9),
        classes=3,
        samples=50,
        batch_size=7,
        epochs=2,
        drop_last=True,
    )
    # 50 images are split in two sets; every epoch leaves out the short batch.
    steps = [r for r in records if r["kind"] == "step"]
    assert result.steps == len(steps) and len(steps) % 2 == 0
    assert torch.isfinite(losses(records)).all()
