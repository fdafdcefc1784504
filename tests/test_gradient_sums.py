"""The gradients of replicated parameters travel in bundles while the backward pass goes on."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import (
    WEIGHTS,
    Differences,
    batch,
    compare_training,
    make_plan,
    mean_loss,
    rank_loss,
    seeded,
    world_size,
)
from helpers.refusing import refused
from hetmp.slicing import orders

pytestmark = pytest.mark.mpi(min_size=2)

IMAGES = (5, 3, 6, 6)


@pytest.fixture
def many_bundles(monkeypatch):
    """Every parameter travels on its own."""
    monkeypatch.setattr(orders, "BUNDLE", 1)


class Net(nn.Module):
    """Layers that run in another order than they are registered in, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Linear(4, 5)
        self.slope = nn.Parameter(torch.ones(1))

    def middle(self, y):
        return self.norm(self.again(y)).relu()

    def forward(self, x):
        y = self.again(self.stem(x)).relu()
        y = checkpoint(self.middle, y, use_reentrant=False)
        return self.head((self.wide(y.mean((2, 3))) * self.slope).sigmoid())


def plan(module):
    return make_plan(module, WEIGHTS["one zero"](world_size()), ("batch",))


def sliced(module):
    return hetmp.slice_model(module, plan(module), example_input=batch(IMAGES))


def test_many_bundles_are_exact(many_bundles):
    module = seeded(Net)
    module.stem.bias.requires_grad_(False)
    model, _ = compare_training(module, plan(module), IMAGES, example=True)
    names = [name for bundle in model.hetmp.replicated(0) for name in bundle]
    assert len(model.hetmp.replicated(0)) == len(names) == len(dict(module.named_parameters()))


def test_small_parameters_travel_together():
    """One message for all."""
    model = sliced(seeded(Net))
    counter = model.hetmp.parameter_entry.backward_counter
    model(batch(IMAGES)).sum().backward()
    assert counter.calls == 1


def test_sums_start_while_the_backward_pass_goes_on(many_bundles):
    """Those of the last layer before the gradients of the first are there."""
    model = sliced(seeded(Net))
    counter, seen = model.hetmp.parameter_entry.backward_counter, []
    y = batch(IMAGES).requires_grad_()
    y.register_hook(lambda gradient: seen.append(counter.calls))
    model.stem.weight.register_hook(lambda gradient: seen.append(counter.calls))
    with torch.autograd.set_multithreading_enabled(False):
        model(y).sum().backward()
    assert counter.calls == len(list(model.parameters()))
    assert seen and all(calls > 2 for calls in seen)


def test_a_graph_is_gone_through_again(many_bundles):
    module = seeded(Net)
    model, x = sliced(module), batch(IMAGES)
    rank, size = model.hetmp.group.rank, world_size()
    differences = Differences(model, module)
    for loss in (rank_loss(model(x), rank), mean_loss(module(x), size)):
        loss.backward(retain_graph=True)
        loss.backward()
    differences.note_gradients()
    differences.compare_gradients("twice")
    differences.assert_none()


def test_gradients_of_some_parameters_alone(many_bundles):
    module = seeded(Net)
    model, x = sliced(module), batch(IMAGES)
    names = ("wide.weight", "again.bias")
    mine = torch.autograd.grad(
        rank_loss(model(x), model.hetmp.group.rank), [model.get_parameter(n) for n in names]
    )
    expected = torch.autograd.grad(
        mean_loss(module(x), world_size()), [module.get_parameter(n) for n in names]
    )
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_two_passes_before_both_backward_passes(many_bundles):
    """Of batches that differ in length."""
    module = seeded(Net)
    model = sliced(module)
    rank, size = model.hetmp.group.rank, world_size()
    batches = batch(IMAGES), batch((2, *IMAGES[1:]), seed=1)
    differences = Differences(model, module)
    for loss_of, run in (
        (lambda y: rank_loss(y, rank), model),
        (lambda y: mean_loss(y, size), module),
    ):
        losses = [loss_of(run(x)) for x in batches]
        for loss in losses:
            loss.backward()
    differences.note_gradients()
    differences.compare_gradients("both")
    differences.assert_none()


def accumulated(model, reference, batches, later: int) -> Differences:
    """Compare gradients of several batches, of which the first ones are summed later."""
    rank, size = model.hetmp.group.rank, world_size()
    for number, x in enumerate(batches):
        mean_loss(reference(x), size, number).backward()
        if number < later:
            with model.hetmp.sum_later():
                rank_loss(model(x), rank, number).backward()
        else:
            rank_loss(model(x), rank, number).backward()
    differences = Differences(model, reference)
    differences.note_gradients()
    differences.compare_gradients("accumulated")
    return differences


@pytest.mark.parametrize("later", [0, 1, 2])
def test_gradients_are_summed_later(many_bundles, later):
    """Once for all batches; and then anew, after zero_grad of either kind."""
    module = seeded(Net)
    model, counter = sliced(module), None
    batches = [batch(IMAGES, seed=number) for number in range(3)]
    counter = model.hetmp.parameter_entry.backward_counter
    for to_none in (True, False):
        calls = counter.calls
        accumulated(model, module, batches, later).assert_none()
        assert counter.calls - calls == (3 - later) * len(list(model.parameters()))
        model.zero_grad(set_to_none=to_none)
        module.zero_grad(set_to_none=to_none)


def test_summands_that_are_dropped_do_not_come_back(many_bundles):
    module = seeded(Net)
    model = sliced(module)
    with model.hetmp.sum_later():
        model(batch(IMAGES, seed=9)).square().sum().backward()
    model.zero_grad()
    accumulated(model, module, [batch(IMAGES)], 0).assert_none()


def test_an_optimizer_does_not_step_on_summands():
    model = sliced(seeded(Net))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with model.hetmp.sum_later():
        model(batch(IMAGES)).sum().backward()
    assert "not summed over the ranks" in refused(optimizer.step)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model(batch(IMAGES)).sum().backward()
    optimizer.step()


def test_summands_are_not_added_to_sums():
    model = sliced(seeded(Net))
    model(batch(IMAGES)).sum().backward()

    def add():
        with model.hetmp.sum_later():
            model(batch(IMAGES)).sum().backward()

    assert "begin with the passes of sum_later()" in refused(add)
