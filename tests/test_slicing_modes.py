"""A sliced model in the ways that users train: frozen, accumulated, checkpointed, evaluated."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hetmp
from comparison import (
    Differences,
    batch,
    compare_training,
    make_plan,
    mean_loss,
    rank_loss,
    seeded,
    sgd,
    world_size,
)

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 6, 6)

PLANS = {"filters": ("filters",), "mixed": ("inputs", "whole", "filters")}


def small(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(7, 5, 2, bias=False),
        nn.PReLU(5),
        nn.Flatten(),
        nn.Linear(45, 4),
    )


def with_a_lazy_rank(module: nn.Module, plan: str) -> hetmp.Plan:
    """A plan in which a rank has nothing, where there is more than one."""
    ranks = world_size()
    weights = [2.0, 0.0, 1.0, 3.0, 1.0][:ranks]
    return make_plan(module, weights, PLANS[plan])


def with_lazy_ranks(module: nn.Module, plan: str) -> hetmp.Plan:
    """A plan in which another rank has nothing in every layer."""
    ranks = world_size()
    made = make_plan(module, [1] * ranks, PLANS[plan])
    for number, layer in enumerate(made.layers):
        weights = [0.0 if rank == (number + 1) % ranks else 1.0 for rank in range(ranks)]
        counts = hetmp.apportion(layer.channels, weights if ranks > 1 else [1]).counts
        made = made.with_layer(layer.name, counts=counts)
    return made


class Pair:
    """A sliced model and the unsliced one, that the same things are done to."""

    def __init__(self, module: nn.Module, plan: hetmp.Plan) -> None:
        self.reference = copy.deepcopy(module)
        self.model = hetmp.slice_model(module, plan)
        self.rank, self.ranks = self.model.hetmp.group.rank, self.model.hetmp.group.size
        self.differences = Differences(self.model, self.reference)
        self.optimizers = [sgd(self.model.parameters()), sgd(self.reference.parameters())]

    def compare(self, when: str) -> None:
        self.differences.note_gradients()
        self.differences.compare_gradients(when)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def finish(self) -> None:
        self.differences.compare_state()
        self.differences.assert_none()


# --- frozen layers ------------------------------------------------------------------------------

FROZEN = {
    "first": lambda name: name.startswith(("0.", "1.")),
    "all but the last": lambda name: not name.startswith("7."),
    "middle": lambda name: name.startswith(("4.", "5.")),
    "last": lambda name: name.startswith("7."),
    "weights, not biases": lambda name: not name.endswith("bias"),
    "biases, not weights": lambda name: name.endswith("bias"),
    "all but one slope": lambda name: name != "5.weight",
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("which", FROZEN)
def test_frozen_layers(which, plan):
    """Every rank joins the backward exchanges, or none does."""
    module = seeded(small)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not FROZEN[which](name))
    compare_training(module, with_a_lazy_rank(module, plan), IMAGES, steps=2, input_gradient=False)


@pytest.mark.parametrize("plan", PLANS)
def test_all_frozen_but_the_input(plan):
    module = seeded(small).requires_grad_(False)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    x, mine = batch(IMAGES).requires_grad_(), batch(IMAGES).requires_grad_()
    mean_loss(pair.reference(x), pair.ranks).backward()
    rank_loss(pair.model(mine), pair.rank).backward()
    pair.differences.scale = float(x.grad.norm())
    pair.differences.compare("gradient of the input", mine.grad, x.grad)
    pair.finish()


@pytest.mark.parametrize("plan", PLANS)
def test_freezing_and_thawing_between_steps(plan):
    module = seeded(small)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    for step, thawed in enumerate((False, True, False)):
        for model in (pair.model, pair.reference):
            for name, parameter in model.named_parameters():
                if not name.startswith("7."):
                    parameter.requires_grad_(thawed)
        mean_loss(pair.reference(batch(IMAGES, step)), pair.ranks, step).backward()
        rank_loss(pair.model(batch(IMAGES, step)), pair.rank, step).backward()
        pair.compare(f"step {step}")
        pair.step()
    pair.finish()


# --- more than one forward or backward ----------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_gradient_accumulation(plan):
    module = seeded(small)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    for step in range(2):
        for part in range(3):
            x, seed = batch((3, *IMAGES[1:]), 10 * step + part), 10 * step + part
            (mean_loss(pair.reference(x), pair.ranks, seed) / 3).backward()
            (rank_loss(pair.model(x), pair.rank, seed) / 3).backward()
            pair.compare(f"step {step}, part {part}")
        pair.step()
    pair.finish()


@pytest.mark.parametrize("plan", PLANS)
def test_two_backwards_over_one_graph(plan):
    module = seeded(small)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    x = batch(IMAGES)
    expected, output = pair.reference(x), pair.model(x)
    for seed, retain in ((0, True), (1, False)):
        mean_loss(expected, pair.ranks, seed).backward(retain_graph=retain)
        rank_loss(output, pair.rank, seed).backward(retain_graph=retain)
        pair.compare(f"backward {seed}")
    pair.finish()


@pytest.mark.parametrize("plan", PLANS)
def test_two_forwards_in_one_backward(plan):
    module = seeded(small)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    first, second = batch(IMAGES, 1), batch((2, *IMAGES[1:]), 2)
    ranks, rank = pair.ranks, pair.rank
    reference, model = pair.reference, pair.model
    (mean_loss(reference(first), ranks, 1) + mean_loss(reference(second), ranks, 2)).backward()
    (rank_loss(model(first), rank, 1) + rank_loss(model(second), rank, 2)).backward()
    pair.compare("both")
    pair.finish()


@pytest.mark.parametrize("plan", PLANS)
def test_a_penalty_of_the_users_own_on_parameters(plan):
    """It reaches replicated parameters once, not once a rank."""
    module = seeded(small)
    pair = Pair(module, with_a_lazy_rank(module, plan))
    x = batch(IMAGES)
    for model, loss in (
        (pair.reference, mean_loss(pair.reference(x), pair.ranks)),
        (pair.model, rank_loss(pair.model(x), pair.rank)),
    ):
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        (loss + 0.1 * penalty).backward()
    pair.compare("with penalty")
    pair.step()
    pair.finish()


# --- torch.utils.checkpoint ---------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True], ids=["early-stop", "reentrant"])
@pytest.mark.parametrize("plan", PLANS)
def test_checkpoint(plan, reentrant):
    """Every rank's recomputation runs through every exchange, also a rank's with nothing."""
    module = seeded(small).eval()  # a second forward pass would count its statistics twice
    pair = Pair(module, with_a_lazy_rank(module, plan))
    for step in range(2):
        x = batch(IMAGES, step).requires_grad_()
        mine = batch(IMAGES, step).requires_grad_()
        mean_loss(pair.reference(x), pair.ranks, step).backward()
        output = checkpoint(pair.model, mine, use_reentrant=reentrant)
        rank_loss(output, pair.rank, step).backward()
        pair.compare(f"step {step}")
        pair.differences.compare("gradient of the input", mine.grad, x.grad)
        pair.step()
    pair.finish()


@pytest.mark.parametrize("reentrant", [False, True], ids=["early-stop", "reentrant"])
@pytest.mark.parametrize("plan", PLANS)
def test_checkpoint_with_dropout(plan, reentrant):
    """The recomputation drops what the forward pass dropped."""
    module = seeded(lambda: small(dropout=0.5))
    for layer in module:
        layer.train(isinstance(layer, nn.Dropout))
    model = hetmp.slice_model(module, with_a_lazy_rank(module, plan))
    gradients = []
    for checkpointed in (False, True):
        x = batch(IMAGES).requires_grad_()
        torch.manual_seed(5)
        model.zero_grad()
        output = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
        rank_loss(output, model.hetmp.group.rank).backward()
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reentrant", [False, True], ids=["early-stop", "reentrant"])
def test_checkpoint_of_a_part(reentrant):
    """The sliced model as one of several stages of a user's own."""
    module = seeded(small).eval()
    pair = Pair(module, with_a_lazy_rank(module, "filters"))
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def stage(model, x):
        return model(x * scale).tanh()

    x = batch(IMAGES).requires_grad_()
    mean_loss(stage(pair.reference, x), pair.ranks).backward()
    expected, scale.grad = scale.grad, None
    output = checkpoint(stage, pair.model, x, use_reentrant=reentrant)
    rank_loss(output, pair.rank).backward()
    pair.compare("stage")
    # The user's own parameter is beside the model: averaging its gradient is the user's.
    total = torch.tensor(pair.model.hetmp.group.allgather(scale.grad.numpy()))
    pair.differences.compare("scale", scale.grad, expected)
    assert torch.allclose(total, expected.expand_as(total), rtol=1e-10)
    pair.finish()


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
