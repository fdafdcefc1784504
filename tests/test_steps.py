"""A step of a run: what the configuration says of it, compared with a plain loop."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import WEIGHTS, Differences, batch, pick_weights, seeded, world_size
from hetmp.cluster import AgreedError
from hetmp.run.config import TrainConfig, train_config
from hetmp.run.precision import autocast_of, casting, wire_of
from hetmp.run.step import MOST_SKIPPED, TrainStep
from hetmp.slicing.not_finite import first_not_finite, not_finite

pytestmark = pytest.mark.mpi

CPU = torch.device("cpu")
SHAPE, CLASSES, COUNT = (3, 8, 8), 5, 4
"""Of an image; of the labels; of the steps."""


def network() -> nn.Sequential:
    """Without kinks or batch norm: a batch in parts has the same gradients as the whole."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1),
        nn.GELU(),
        nn.GroupNorm(1, 7),
        nn.Conv2d(7, 11, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Conv2d(11, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, CLASSES),
    )


def config(**told) -> TrainConfig:
    return train_config(model="x", data="digits", dtype="float64", **told)


def images(step: int) -> torch.Tensor:
    return batch((10, *SHAPE), seed=step)


def labels(step: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(step).integers(0, CLASSES, 10))


def sliced(
    told: TrainConfig, module: nn.Module, weights=None
) -> tuple[hetmp.SlicedModel, TrainStep]:
    model = hetmp.slice_model(
        module, weights or pick_weights(1), tuning=hetmp.Tuning(wire=wire_of(told))
    )
    autocast = autocast_of(told.autocast, model.hetmp.group)
    return model, TrainStep(told, model, COUNT, CPU, autocast)


@pytest.mark.parametrize("kind", sorted(WEIGHTS))
@pytest.mark.parametrize(
    "told",
    [
        {"accumulate": 3},
        {"accumulate": 4, "label_smoothing": 0.1, "clip": 0.5, "optimizer": "adamw", "lr": 0.01},
        {"average": 0.9, "warmup": 2, "schedule": "linear"},
        {"optimizer": "RMSprop", "optimizer_options": {"alpha": 0.9, "centered": True}},
    ],
    ids=["parts", "clipped", "averaged", "options"],
)
def test_steps_are_those_of_a_plain_loop(kind, told):
    """In float64: parts of a batch, smoothing, clipping, warm-up, averages and options."""
    module = seeded(network)
    reference, mean = copy.deepcopy(module), torch.optim.swa_utils.AveragedModel(
        copy.deepcopy(module), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )  # fmt: skip
    made = config(**({"lr": 0.05} | told))
    model, steps = sliced(made, module, WEIGHTS[kind](world_size()))
    if made.optimizer == "adamw":
        optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0)
    elif made.optimizer == "RMSprop":
        optimizer = torch.optim.RMSprop(reference.parameters(), 0.05, alpha=0.9, centered=True)
    else:
        optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    differences = Differences(model, reference)
    for step in range(COUNT):
        factor = 0.5 * (1 + math.cos(math.pi * step / COUNT))
        if "warmup" in told:
            factor = [1 / 3, 2 / 3, 1, 1 / 2][step]
        for group in optimizer.param_groups:
            group["lr"] = made.lr * factor
        optimizer.zero_grad()
        output = reference(images(step))
        smoothing = told.get("label_smoothing", 0.0)
        loss = nn.functional.cross_entropy(output, labels(step), label_smoothing=smoothing)
        loss.backward()
        if "clip" in told:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), told["clip"])
        differences.note_gradients()
        optimizer.step()
        mean.update_parameters(reference)
        assert steps.optimizer.param_groups[0]["lr"] == pytest.approx(made.lr * factor, rel=1e-12)
        taken = steps.take(images(step), labels(step))
        steps.schedule.step()
        assert taken.loss == pytest.approx(float(loss.detach()), rel=1e-10)
        assert taken.correct == int((output.argmax(1) == labels(step)).sum())
        differences.compare_gradients(f"step {step}")
    differences.compare_state()
    if "average" in told:
        judged = Differences(model, mean.module)
        with steps.evaluated():
            judged.compare_state()
        judged.assert_none()
        differences.compare_state()
    differences.assert_none()


@pytest.mark.parametrize("kind", ["70:25:5", "one zero"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_is_as_exact_as_on_one_process(kind, dtype):
    """Gradients are off by what 16 bits cost, not by more than twice what they cost one process."""
    module = seeded(network).float()
    exact, rounded = copy.deepcopy(module).double(), copy.deepcopy(module)
    nn.functional.cross_entropy(exact(images(0)), labels(0)).backward()
    with torch.autocast("cpu", getattr(torch, dtype)):
        output = rounded(images(0).float())
    nn.functional.cross_entropy(output.float(), labels(0)).backward()
    made = train_config(model="x", data="digits", autocast=(dtype,), lr=1e-9)
    model, steps = sliced(made, module, WEIGHTS[kind](world_size()))
    steps.scaler = None  # the gradients themselves are looked at
    steps.take(images(0).float(), labels(0))
    gradients = gradients_of(model)
    for name, parameter in exact.named_parameters():
        scale = float(parameter.grad.norm())
        alone = float((rounded.get_parameter(name).grad.double() - parameter.grad).norm()) / scale
        error = float((gradients[name].double() - parameter.grad).norm()) / scale
        assert 1e-6 < error < max(2 * alone, 0.02), (name, error, alone)


def gradients_of(model: hetmp.SlicedModel) -> dict[str, torch.Tensor]:
    """Whole gradients, by name. Collective."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        merged = hetmp.merge_model(model)
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    return merged


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("told", ["bfloat16,none", "none,float16,bfloat16"])
def test_ranks_of_unlike_precision_train_one_network(told):
    """Each computes in its own, they agree on what they exchange, and replicas stay alike."""
    ranks = world_size()
    own = tuple((told.split(",") * ranks)[:ranks])
    module = seeded(network).float()
    exact = copy.deepcopy(module).double()
    made = train_config(model="x", data="digits", autocast=own, lr=0.05)
    model, steps = sliced(made, module, WEIGHTS["1:2:3"](ranks))
    assert (steps.scaler is not None) == ("float16" in own)
    assert model.hetmp.tuning.wire == "float32"
    optimizer = torch.optim.SGD(exact.parameters(), lr=0.05, momentum=0.9)
    for step in range(COUNT):
        for group in optimizer.param_groups:
            group["lr"] = steps.optimizer.param_groups[0]["lr"]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(exact(images(step)), labels(step))
        loss.backward()
        optimizer.step()
        taken = steps.take(images(step).float(), labels(step))
        steps.schedule.step()
        assert taken.loss == pytest.approx(float(loss.detach()), abs=0.02)
    group = model.hetmp.group
    for name, parameter in model.named_parameters():
        if model.hetmp.table[name].state == hetmp.core.state.FULL:
            seen = group.allgather(parameter.detach().numpy())
            assert (seen == seen[0]).all(), name
    with casting(None, CPU), torch.no_grad():
        moved = {name: p.double() for name, p in hetmp.merge_model(model).items()}
    for name, parameter in exact.named_parameters():
        assert torch.allclose(moved[name], parameter, atol=0.01), name


@pytest.mark.mpi(min_size=2)
def test_unlike_autocasts_without_a_wire_are_refused_on_all_ranks():
    """What one rank would send in 16 bits another would take for 32."""
    model = hetmp.slice_model(seeded(network).float(), [1.0] * world_size())
    own = torch.bfloat16 if model.hetmp.group.rank == 1 else None
    with (
        pytest.raises(AgreedError, match="rank 1 is under autocast bfloat16, rank 0 under none"),
        casting(own, CPU),
    ):
        model(images(0).float())


@pytest.mark.parametrize("where", ["loss", "weight", "image"])
def test_a_loss_that_is_no_number_stops_before_the_weights_are_spoilt(where):
    """In words that say where it came from, on every rank the same."""
    module = seeded(network)
    if where == "weight":
        module[3].weight.data[-1] = math.inf
    model, steps = sliced(config(), module)
    given = images(0)
    if where == "image":
        given[0, 0, 0, 0] = math.nan
    if where == "loss":
        module[9].weight.data.fill_(1.7e308)
        model, steps = sliced(config(), module)
    before = hetmp.merge_model(model)
    told = {"weight": "3.weight", "image": "the images", "loss": "the output of 9"}[where]
    with pytest.raises(AgreedError, match=f"first value that is not finite is in {told}"):
        steps.take(given, labels(0))
    after = hetmp.merge_model(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_spoilt_step_is_skipped_if_told_to():
    """On all ranks, though a single rank's gradient is wrong; and not for ever."""
    model, steps = sliced(config(on_nan="skip"), seeded(network))
    group, first = model.hetmp.group, dict(model.named_parameters())
    assert not steps.take(images(0), labels(0)).skipped
    before = hetmp.merge_model(model)
    last = max(r for r in range(group.size) if model.hetmp.plan.held[r])
    if group.rank == last:
        weight = first["3.weight"]
        hook = weight.register_hook(lambda gradient: gradient * math.nan)
    taken = steps.take(images(1), labels(1))
    assert taken.skipped
    assert math.isfinite(taken.loss)
    after = hetmp.merge_model(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    if group.rank == last:
        hook.remove()
    assert not steps.take(images(1), labels(1)).skipped
    spoilt = images(2) * math.nan
    for _ in range(MOST_SKIPPED - 1):
        assert steps.take(spoilt, labels(2)).skipped
    with pytest.raises(AgreedError, match=f"{MOST_SKIPPED} steps in a row were skipped"):
        steps.take(spoilt, labels(2))


def test_a_skipped_step_leaves_running_statistics_as_they_were():
    module = nn.Sequential(*seeded(network)[:2], nn.BatchNorm2d(7).double(), *seeded(network)[3:])
    model, steps = sliced(config(on_nan="skip"), module)
    steps.take(images(0), labels(0))
    before = hetmp.merge_model(model)
    assert steps.take(images(1) * math.nan, labels(1)).skipped
    after = hetmp.merge_model(model)
    assert "2.running_var" in before
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_is_not_finite_is_found_on_whichever_rank_it_is():
    model = hetmp.slice_model(seeded(network), WEIGHTS["equal"](world_size()))
    assert not_finite(model) is None
    assert first_not_finite(model, images(0)) == "the loss itself"
    group = model.hetmp.group
    if group.rank == group.size - 1:
        model.get_parameter("3.weight").data[...] = math.nan
    assert not_finite(model) == "3.weight"
    assert first_not_finite(model, images(0)) == "3.weight"


def test_scaled_steps_that_overflow_are_skipped_on_all_ranks_and_saved():
    """The scale halves everywhere, and goes on from what was saved."""
    made = train_config(model="x", data="digits", autocast=("float16",), lr=0.05)
    model, steps = sliced(made, seeded(network).float())
    assert steps.scaler is not None
    before = hetmp.merge_model(model)
    # No 16-bit gradient holds what is multiplied by so much.
    steps.scaler.load_state_dict({**steps.scaler.state_dict(), "scale": 2.0**127})
    steps.take(images(0).float(), labels(0))
    after = hetmp.merge_model(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert steps.scaler.get_scale() == 2.0**126
    again = TrainStep(made, model, COUNT, CPU)
    again.resume(steps.state())
    assert again.scaler.get_scale() == 2.0**126
