"""A sliced model in evaluation, and in lower precision."""

import copy

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, mean_loss, rank_loss, seeded
from helpers.paired import IMAGES, PLANS, Pair, small, with_a_lazy_rank, with_lazy_ranks
from helpers.works import works

pytestmark = pytest.mark.mpi

# --- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_between_training_steps(mode, plan):
    """Statistics move in training and are used in evaluation; nothing needs a gradient."""
    module = seeded(small)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    for step in range(2):
        x = batch(IMAGES, step)
        mean_loss(pair.reference(x), pair.ranks, step).backward()
        rank_loss(pair.model(x), pair.rank, step).backward()
        pair.compare(f"step {step}")
        pair.step()
        for size in (1, 5):
            with mode():
                unseen = batch((size, *IMAGES[1:]), 99)
                output = pair.model.eval()(unseen)
                expected = pair.reference.eval()(unseen)
            assert not output.requires_grad
            pair.differences.compare(f"evaluation {step}", output, expected)
        pair.model.train()
        pair.reference.train()
    pair.finish()


def test_evaluation_of_one_value_per_channel():
    """Which a norm refuses in training, and a rank without channels must not."""
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 7, 6), nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1))
    )
    pair = Pair(module, with_a_lazy_rank(module, "filters"))
    x = batch((1, *IMAGES[1:]))
    output, expected = pair.model.eval()(x), pair.reference.eval()(x)
    pair.differences.compare("output", output, expected)
    pair.finish()


def test_modes_reach_every_layer():
    module = seeded(small)
    model = hetmp.slice_model(module, with_a_lazy_rank(module, "filters"))
    for mode in (False, True):
        model.train(mode)
        assert all(layer.training == mode for layer in model.modules())
    module.eval()
    module[3].train()
    model = hetmp.slice_model(module, with_a_lazy_rank(module, "filters"))
    assert [layer.training for layer in model.children() if layer is not model.hetmp] == [
        layer.training for layer in module
    ]
    assert not model.training


@works("`torch.no_grad`, `torch.inference_mode`")
@pytest.mark.parametrize("plan", PLANS)
def test_gradient_mode_inside_the_loop(plan):
    """A pass without gradients beside one with them does not confuse the exchanges."""
    module = seeded(small).eval()
    pair = Pair(module, with_a_lazy_rank(module, plan))
    x = batch(IMAGES)
    with torch.no_grad():
        target, expected_target = pair.model(x), pair.reference(x)
    pair.differences.compare("target", target, expected_target)
    (mean_loss(pair.reference(2 * x) - expected_target, pair.ranks)).backward()
    rank_loss(pair.model(2 * x) - target, pair.rank).backward()
    pair.compare("after")
    pair.finish()


# --- precision ----------------------------------------------------------------------------------


@works("`torch.autocast`")
@pytest.mark.parametrize("plan", PLANS)
def test_autocast(plan):
    """Ranks with nothing give the lower precision too, or their messages would not fit."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 2), nn.Flatten(), nn.Linear(45, 4)
        )
    ).float()
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, with_lazy_ranks(module, plan))
    x = batch(IMAGES, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = model(x), reference(x)
    rank_loss(output, model.hetmp.group.rank).backward()
    assert output.dtype == expected.dtype
    torch.testing.assert_close(output.double(), expected.double(), rtol=0.05, atol=0.05)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype, plan):
    module = seeded(small).to(dtype)
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, with_a_lazy_rank(module, plan))
    x = batch(IMAGES, dtype=dtype)
    output, expected = model(x), reference(x)
    rank_loss(output, model.hetmp.group.rank).backward()
    near = 1e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(output, expected, rtol=near, atol=near)
    assert all(parameter.grad.dtype == dtype for parameter in model.parameters())
