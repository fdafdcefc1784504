"""A sliced model with frozen layers, and with more than one forward or backward pass."""

import pytest

from helpers.comparison import batch, compare_training, mean_loss, rank_loss, seeded
from helpers.paired import IMAGES, PLANS, Pair, small, with_a_lazy_rank
from helpers.works import works

pytestmark = pytest.mark.mpi

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


@works("`requires_grad_` before slicing")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("which", FROZEN)
def test_frozen_layers(which, plan):
    """Every rank joins the backward exchanges, or none does."""
    module = seeded(small)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not FROZEN[which](name))
    compare_training(module, with_a_lazy_rank(module, plan), IMAGES, input_gradient=False)


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


@works("`requires_grad_` after slicing")
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


@works("gradient accumulation")
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


@works("`backward(retain_graph=True)`, then another")
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


@works("several forwards to one backward")
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
