"""What is global in an optimizer, and what of its state a rank holds."""

import copy
import math

import pytest
from torch import nn

import hetmp
from helpers.comparison import (
    WEIGHTS,
    Differences,
    adam,
    batch,
    make_plan,
    mean_loss,
    pick_weights,
    rank_loss,
    seeded,
    sgd,
    world_size,
)
from helpers.works import works
from hetmp.cluster import AgreedError
from hetmp.exchange import plain_tensors

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 6, 6)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.BatchNorm2d(7),
        nn.PReLU(),
        nn.Conv2d(7, 5, 4),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


def trained(schemes=("filters", "whole", "inputs"), weights=None, frozen=()):
    """A sliced model and the unsliced one after one backward pass."""
    module = seeded(small)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    reference = copy.deepcopy(module)
    plan = make_plan(module, weights or pick_weights(0), schemes)
    model = hetmp.slice_model(module, plan)
    group = model.hetmp.group
    mean_loss(reference(batch(IMAGES)), group.size).backward()
    rank_loss(model(batch(IMAGES)), group.rank).backward()
    return model, reference


@works("`hetmp.clip_grad_norm_`")
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("kind", ["70:25:5", "one zero"])
def test_clip_grad_norm(kind, norm_type):
    """As torch's own does on the unsliced model, replicated parameters counted once."""
    schemes = ("filters",) if norm_type == 3.5 else ("filters", "whole", "inputs")
    model, reference = trained(schemes, WEIGHTS[kind](world_size()), frozen=["3.bias"])
    differences = Differences(model, reference)
    for max_norm in (1e6, 0.05):
        expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm, norm_type)
        norm = hetmp.clip_grad_norm_(model, max_norm, norm_type)
        differences.note_gradients()
        differences.compare(f"norm before clipping to {max_norm}", norm, expected)
        differences.compare_gradients(f"clipped to {max_norm}")
    norms = model.hetmp.group.allgather(norm.numpy())
    differences.assert_none()
    assert (norms == norms[0]).all()


def test_clip_to_nothing():
    model, _ = trained()
    assert hetmp.clip_grad_norm_(model, 0.0) > 0
    with plain_tensors():
        assert all((p.grad == 0).all() for p in model.parameters())


def test_clip_without_gradients():
    module = seeded(small)
    model = hetmp.slice_model(module, pick_weights(1))
    assert hetmp.clip_grad_norm_(model, 1.0) == 0


@pytest.mark.parametrize("norm_type", [2.0, math.inf])
def test_a_gradient_that_is_not_a_number_shows_in_the_norm_of_all(norm_type):
    model, _ = trained(("filters",), WEIGHTS["equal"](world_size()))
    if model.hetmp.group.rank == model.hetmp.group.size - 1:
        with plain_tensors():
            model.get_parameter("0.weight").grad[0, 0, 0, 0] = math.nan
    assert math.isnan(hetmp.clip_grad_norm_(model, 1.0, norm_type))


@pytest.mark.parametrize(
    ("max_norm", "norm_type", "named"),
    [
        (-1.0, 2.0, "max_norm is 0 or more, got -1.0"),
        (math.nan, 2.0, "max_norm is 0 or more, got nan"),
        (1.0, 0.0, "norm_type is above 0 .* got 0.0"),
        (1.0, -math.inf, "norm_type is above 0 .* got -inf"),
        (1.0, math.nan, "norm_type is above 0 .* got nan"),
    ],
)
def test_norms_that_are_none_are_refused(max_norm, norm_type, named):
    model, _ = trained()
    with pytest.raises(AgreedError, match=named):
        hetmp.clip_grad_norm_(model, max_norm, norm_type)


@pytest.mark.parametrize(
    ("make", "names"), [(sgd, ["momentum_buffer"]), (adam, ["exp_avg", "exp_avg_sq"])]
)
def test_optimizer_state_is_a_ranks_own_share(make, names):
    """Momentum and Adam's moments have the shapes, and the values, of the slices."""
    weights = [3.0, 0.0, 2.0, 1.0, 2.0][: world_size()]
    model, reference = trained(("filters", "whole", "filters"), weights)
    optimizers = [make(model.parameters()), make(reference.parameters())]
    for optimizer in optimizers:
        optimizer.step()
    differences = Differences(model, reference)
    differences.note_gradients()
    wholes = dict(reference.named_parameters())
    held = 0
    for name, parameter in model.named_parameters():
        for state in names:
            mine = optimizers[0].state[parameter][state]
            expected = optimizers[1].state[wholes[name]][state]
            cut = model.hetmp.table[name].state
            assert mine.shape == parameter.shape
            share = hetmp.exchange.share_of(expected, cut, model.hetmp.group.rank)
            differences.compare(f"{state} of {name}", mine, share)
            held += mine.numel()
    differences.assert_none()
    assert held == len(names) * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("schemes", [("filters",), ("inputs", "whole", "filters")])
def test_clipping_in_a_training_loop(schemes):
    """Five steps with clipping that bites are those of the unsliced model."""
    module = seeded(small)
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, make_plan(module, pick_weights(2), schemes))
    group = model.hetmp.group
    optimizers = [sgd(model.parameters()), sgd(reference.parameters())]
    differences = Differences(model, reference)
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        x = batch(IMAGES, step)
        mean_loss(reference(x), group.size, step).backward()
        rank_loss(model(x), group.rank, step).backward()
        expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
        norm = hetmp.clip_grad_norm_(model, 0.1)
        differences.note_gradients()
        differences.compare(f"step {step}, norm", norm, expected)
        for optimizer in optimizers:
            optimizer.step()
    differences.compare_state()
    differences.assert_none()
