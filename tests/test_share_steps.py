"""Each rank steps some rows of the replicated parameters: the same network, less state."""

import copy
import json
from functools import partial

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import (
    WEIGHTS,
    batch,
    compare_training,
    make_plan,
    mean_loss,
    rank_loss,
    seeded,
    world_size,
)
from helpers.refusing import refused
from helpers.saving import shared, world
from hetmp.optim import GradScaler, clip_grad_norm_, share_steps
from hetmp.run.config import train_config
from hetmp.run.train import train
from hetmp.slicing.step_shares import step_share

pytestmark = pytest.mark.mpi(min_size=2)

IMAGES = (5, 3, 6, 6)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 11, 3), nn.BatchNorm2d(11), nn.ReLU(), nn.Flatten(), nn.Linear(176, 7)
    )


def plan(module, weights="one zero", schemes=("batch",)):
    return make_plan(module, WEIGHTS[weights](world_size()), schemes)


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adam, one by one": partial(torch.optim.Adam, lr=0.01, foreach=False),
}


def trained(model, optimizer, steps, loss_of, prepare=lambda: None):
    """Train for *steps*; return the losses."""
    losses = []
    for step in steps:
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        loss = loss_of(model(batch(IMAGES, step)), step)
        loss.backward()
        prepare()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def own_loss(model):
    rank = model.hetmp.group.rank
    return lambda output, step: rank_loss(output, rank, step)


def everyones_loss(output, step):
    return mean_loss(output, world_size(), step)


def same(model, reference):
    for name, value in hetmp.merge_model(model).items():
        wanted = reference.state_dict()[name]
        torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("schemes", [("batch",), ("batch", "filters")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_network_is_the_same(name, schemes):
    module = seeded(net)
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, plan(module, schemes=schemes))
    optimizer = OPTIMIZERS[name](model.parameters())
    share_steps(optimizer, model)
    trained(model, optimizer, range(3), own_loss(model), lambda: clip_grad_norm_(model, 1.0))
    other = OPTIMIZERS[name](reference.parameters())
    clip = partial(nn.utils.clip_grad_norm_, list(reference.parameters()), 1.0)
    trained(reference, other, range(3), everyones_loss, clip)
    same(model, reference)
    sizes = [
        value.numel()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    if schemes == ("batch",) and not model.hetmp.plan.layers[0].weights[model.hetmp.group.rank]:
        assert sum(sizes) == 0


def test_state_goes_from_shares_to_whole_and_back(tmp_path):
    path, make = shared(tmp_path) / "a.h5", OPTIMIZERS["adamw"]
    module = seeded(net)
    model = hetmp.slice_model(module, plan(module, "1:2:3"))
    optimizer = make(model.parameters())
    share_steps(optimizer, model, [1.0] * world_size())
    trained(model, optimizer, range(2), own_loss(model))
    hetmp.save(path, model, optimizer)
    wanted = trained(model, optimizer, range(2, 4), own_loss(model))
    for is_shared in (True, False):
        other = hetmp.slice_model(seeded(net, 1), plan(module, "70:25:5", ("filters", "batch")))
        again = make(other.parameters())
        if is_shared:
            share_steps(again, other)
        hetmp.load(path, other, again)
        assert trained(other, again, range(2, 4), own_loss(other)) == pytest.approx(wanted, 1e-10)


def test_a_scaler_unscales_whole_gradients():
    module = seeded(net)
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, plan(module, "1:2:3"))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    share_steps(optimizer, model)
    scaler = GradScaler(model, "cpu", init_scale=8.0)
    scaler.scale(own_loss(model)(model(batch(IMAGES)), 0)).backward()
    scaler.unscale_(optimizer)
    norm = clip_grad_norm_(model, 0.1)
    scaler.step(optimizer)
    scaler.update()
    everyones_loss(reference(batch(IMAGES)), 0).backward()
    assert float(norm) == pytest.approx(
        float(nn.utils.clip_grad_norm_(list(reference.parameters()), 0.1)), 1e-10
    )
    OPTIMIZERS["sgd"](reference.parameters()).step()
    same(model, reference)


def test_accumulated_gradients():
    module = seeded(net)
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, plan(module, "1:2:3"))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    share_steps(optimizer, model)
    with model.hetmp.sum_later():
        own_loss(model)(model(batch(IMAGES)), 0).backward()
    assert "not summed over the ranks" in refused(optimizer.step)
    own_loss(model)(model(batch(IMAGES, 1)), 1).backward()
    optimizer.step()
    for step in range(2):
        everyones_loss(reference(batch(IMAGES, step)), step).backward()
    OPTIMIZERS["sgd"](reference.parameters()).step()
    same(model, reference)


def test_what_is_refused():
    model = hetmp.slice_model(seeded(net), plan(seeded(net)))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    weights = [1.0] * world_size()
    assert "LBFGS does not step" in refused(
        lambda: share_steps(torch.optim.LBFGS(model.parameters()), model)
    )
    assert "before the first step" in refused(lambda: stepped_before(model))
    share_steps(optimizer, model, weights)
    model.float()
    model(batch(IMAGES).float()).sum().backward()
    assert "moved or replaced" in refused(optimizer.step)


def stepped_before(model):
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model(batch(IMAGES)).sum().backward()
    optimizer.step()
    share_steps(optimizer, model)


def test_filters_have_nothing_to_share():
    """Parameters that are cut stay as they are."""
    model = hetmp.slice_model(seeded(net), [1.0] * world_size())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    share_steps(optimizer, model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in parameters] == [id(p) for p in model.parameters()]
    assert not any(map(step_share, parameters))
    compare_training(seeded(net), [1.0] * world_size(), IMAGES)


@pytest.mark.few_ranks
def test_a_run_shares_its_steps(tmp_path):
    """The losses are those of a run that does not, also after it is resumed."""
    folder = shared(tmp_path)
    weights = [3.0, 1.0, 2.0][: world_size()]
    settings = {
        "model": "digits", "data": "digits", "dtype": "float64", "batch_size": 200, "steps": 4,
        "weights": weights, "schemes": "batch:1", "schedule": "constant", "accumulate": 2,
    }  # fmt: skip
    losses = []
    for name, more in (
        ("whole", {}),
        ("shared", {"share_steps": True, "steps": 2, "checkpoint_every": "2steps"}),
        ("shared", {"share_steps": True, "resume": "auto"}),
    ):
        out = folder / name
        train(train_config(out=out, **{**settings, **more}), world())
        world().Barrier()
        records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses.append({r["step"]: r["loss"] for r in records if r["kind"] == "step"})
    assert losses[2] == pytest.approx(losses[0], 1e-10)
    assert losses[1] == pytest.approx({step: losses[0][step] for step in losses[1]}, 1e-10)
