"""A sliced model under torch.utils.checkpoint, which runs the forward pass again."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import batch, mean_loss, rank_loss, seeded
from helpers.paired import IMAGES, PLANS, Pair, small, with_a_lazy_rank
from helpers.works import works

pytestmark = pytest.mark.mpi


@works("`torch.utils.checkpoint` around the model")
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
