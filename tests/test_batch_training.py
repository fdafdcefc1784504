"""Training on slices of the batch as users train: several passes, frozen parts, norms, dropout."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hetmp
from helpers.comparison import (
    Differences,
    batch,
    compare_training,
    make_plan,
    mean_loss,
    pick_weights,
    rank_loss,
    seeded,
)
from hetmp.exchange import share_of

pytestmark = pytest.mark.mpi

SHAPE = (5, 3, 4, 6)


class Checkpointed(nn.Module):
    """A part of the forward pass is computed again in the backward pass."""

    def __init__(self, again: bool = True) -> None:
        super().__init__()
        self.again = again
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.third = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, (2, 1))

    def inside(self, x):
        x = self.second(self.norm(self.first(x)).tanh())
        return x - x.mean(0) / x.size(0)

    def forward(self, x):
        x = checkpoint(self.inside, x, use_reentrant=False) if self.again else self.inside(x)
        return self.third(x).flatten(1)


def sliced_and_plain(module, schemes, number, **options):
    """The module on batch slices, and itself."""
    plan = make_plan(module, pick_weights(number), schemes)
    example = torch.empty(*SHAPE, dtype=torch.float64)
    model = hetmp.slice_model(module, plan, example_input=example, **options)
    return model, copy.deepcopy(module)


TUNINGS = {
    "usual": None,
    "regather": hetmp.Tuning(regather=True, channels_last=False),
    "plain": hetmp.Tuning(shared_memory=False, overlap=False),
}


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpoint"])
@pytest.mark.parametrize("schemes", [("batch",), ("batch", "filters"), ("filters", "batch")])
def test_two_batches_under_way(schemes, again, tuning):
    """Both go forward, then both back: each with the number of images that it has itself."""
    module = seeded(lambda: Checkpointed(again))
    model, reference = sliced_and_plain(module, schemes, len(tuning), tuning=TUNINGS[tuning])
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    differences = Differences(model, reference)
    inputs = [batch((images, *SHAPE[1:]), images).requires_grad_() for images in (5, 2, 4)]
    mine = [x.detach().clone().requires_grad_() for x in inputs]
    losses = [mean_loss(reference(x), ranks) for x in inputs]
    own = [rank_loss(model(x), rank) for x in mine]
    for number in (0, 2, 1):
        losses[number].backward(retain_graph=True)
        own[number].backward(retain_graph=True)
    losses[0].backward()
    own[0].backward()
    differences.note_gradients()
    differences.compare_gradients("after all")
    for number, (x, wanted) in enumerate(zip(mine, inputs, strict=True)):
        differences.compare(f"gradient of input {number}", x.grad, wanted.grad)
    differences.compare_state()
    differences.assert_none()


class Twice(nn.Module):
    """Layers that are called on slices of the batch and on another value as well."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.norm, self.slope = nn.BatchNorm2d(4), nn.PReLU(4)

    def forward(self, x):
        one, two = self.first(x), self.second(self.first(x).tanh())
        flipped = two.flip(0)  # all images on every rank
        values = [one, flipped, two][:: self.order]
        normed = [self.slope(self.norm(value)) for value in values]
        return sum(normed), self.second(normed[0])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "schemes", [("batch",), ("batch", "filters"), ("filters", "batch"), ("inputs", "batch")]
)
def test_layers_that_run_several_times(schemes, order):
    module = seeded(lambda: Twice(order))
    plan = make_plan(module, pick_weights(order + len(schemes)), schemes, turned=True)
    compare_training(module, plan, SHAPE, example=True)


NORMS = {
    "1d": (lambda: nn.BatchNorm1d(4), (5, 3, 6), nn.Conv1d),
    "2d": (lambda: nn.BatchNorm2d(4, momentum=0.3), SHAPE, nn.Conv2d),
    "3d": (lambda: nn.BatchNorm3d(4, affine=False), (4, 3, 2, 3, 2), nn.Conv3d),
    "cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), SHAPE, nn.Conv2d),
    "untracked": (lambda: nn.BatchNorm2d(4, track_running_stats=False), SHAPE, nn.Conv2d),
    "bare": (
        lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        (2, *SHAPE[1:]),
        nn.Conv2d,
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_in_both_modes(name):
    """Trained, evaluated, trained on; the running statistics are equal to the last bit."""
    make, shape, conv = NORMS[name]
    module = seeded(lambda: nn.Sequential(conv(3, 4, 1), make(), nn.Tanh(), conv(4, 2, 1)))
    number = list(NORMS).index(name)
    schemes = (("batch",), ("batch", "filters"))[number % 2]
    plan = make_plan(module, pick_weights(number), schemes)
    model, reference = compare_training(module, plan, shape, steps=3)
    ranks = model.hetmp.group
    for one in (model, reference):
        one.eval()
    x = batch((2, *shape[1:]), 7)
    torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-10)
    for one in (model, reference):
        one.train()
        one(x)
    buffers = dict(reference.named_buffers())
    for title, buffer in model.named_buffers():
        if title in buffers:
            torch.testing.assert_close(buffer, buffers[title], rtol=1e-10, atol=1e-12)
            everywhere = ranks.allgather(buffer.double().reshape(-1).numpy())
            assert (everywhere == everywhere[0]).all(), title


def test_large_means_in_float32():
    """As near to float64 as torch's own, of images whose mean is 10,000 deviations from zero."""
    layer = nn.BatchNorm2d(4)
    module = nn.Sequential(nn.Conv2d(4, 4, 1), layer)
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(4)[..., None, None])
        module[0].bias.zero_()
    plan = make_plan(module, pick_weights(0), ("batch",))
    model, wide = hetmp.slice_model(module, plan), copy.deepcopy(module).double()
    x = batch((16, 4, 5, 5), 1).float() + 1e4
    exact = wide(x.double())
    error = (model(x).double() - exact).abs().max()
    plain = (module(x).double() - exact).abs().max()
    assert error <= 2 * plain + 1e-6
    variance = merged_buffer(model, "1.running_var").double()
    expected = wide[1].running_var
    torch.testing.assert_close(variance, expected, rtol=1e-5, atol=0)


def merged_buffer(model, name):
    """A buffer as it is on one rank alone."""
    return hetmp.merge_model(model)[name]


def test_batch_norm_under_autocast():
    """Activations are rounded, statistics are not."""
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 1))
    ).float()
    plan = make_plan(module, pick_weights(1), ("batch",))
    model, reference = hetmp.slice_model(module, plan), copy.deepcopy(module)
    x = batch(SHAPE, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = model(x), reference(x)
    assert output.dtype == expected.dtype
    torch.testing.assert_close(output.float(), expected.float(), rtol=0.05, atol=0.05)
    output.float().square().mean().backward()
    expected.float().square().mean().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert mine.grad.dtype == theirs.grad.dtype
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("schemes", [("batch", "filters"), ("filters", "batch")])
def test_exchanges_may_be_rounded_on_the_wire(schemes):
    """Between both axes and at the sums of whole weights: to single precision, and no further."""
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 7, 2), nn.BatchNorm2d(7), nn.Conv2d(7, 4, 1))
    )
    model, reference = sliced_and_plain(module, schemes, 1, tuning=hetmp.Tuning(wire="float32"))
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    output, expected = model(batch(SHAPE)), reference(batch(SHAPE))
    rank_loss(output, rank).backward()
    mean_loss(expected, ranks).backward()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    if ranks > 1:
        assert not torch.equal(output, expected)
    table = model.hetmp.table
    for name, parameter in model.named_parameters():
        wanted = share_of(reference.get_parameter(name).grad, table[name].state, rank)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-5)


def test_one_value_per_channel_is_refused():
    module = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    model = hetmp.slice_model(module, make_plan(module, pick_weights(0), ("batch",)))
    with pytest.raises(hetmp.HetmpError, match="1 value per channel"):
        model(batch((1, 3)))
    model.eval()(batch((1, 3)))


class Dropping(nn.Module):
    """Dropout in all its forms, and random numbers of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.elements, self.channels = nn.Dropout(0.4), nn.Dropout2d(0.4)
        self.alpha, self.slopes = nn.AlphaDropout(0.3), nn.RReLU()

    def forward(self, x):
        x = self.channels(self.elements(self.first(x)))
        x = self.second(F.dropout(x, 0.3, self.training)) + torch.randn(x.size(0), 1, 1, 1)
        return self.slopes(self.alpha(x)) + 0.1 * torch.rand_like(x)


@pytest.mark.parametrize("schemes", [("batch",), ("filters", "batch")])
def test_what_is_dropped_is_of_the_whole_batch(schemes):
    """As on one rank alone, also in a batch of fewer images than ranks."""
    from mpi4py import MPI

    module = seeded(Dropping)
    example = torch.empty(*SHAPE, dtype=torch.float64)
    plan = make_plan(module, pick_weights(1), schemes)
    model = hetmp.slice_model(module, plan, example_input=example)
    alone = hetmp.slice_model(module, [1], MPI.COMM_SELF, example_input=example)
    for images in (5, 2):
        x = batch((images, *SHAPE[1:]), images)
        torch.manual_seed(images)
        expected = alone(x)
        torch.manual_seed(images)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-12)


class TwoInputs(nn.Module):
    """Images, class numbers of each, and a table that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.classes = nn.Embedding(6, 4)

    def forward(self, images, numbers, table):
        x = self.first(images) + self.classes(numbers)[..., None, None] * table
        return self.second(x), x.mean((2, 3))


@pytest.mark.parametrize("schemes", [("batch",), ("batch", "filters")])
def test_inputs_with_and_without_a_batch(schemes):
    module = seeded(TwoInputs)
    reference, plan = copy.deepcopy(module), make_plan(module, pick_weights(2), schemes)

    def inputs(images):
        numbers = torch.arange(images) % 6
        return batch((images, *SHAPE[1:]), images), numbers, batch((4, 1, 6), 3)

    model = hetmp.slice_model(module, plan, example_input=inputs(5))
    differences = Differences(model, reference)
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    for images in (5, 2, 7):
        outputs, expected = model(*inputs(images)), reference(*inputs(images))
        sum(rank_loss(output, rank) for output in outputs).backward()
        sum(mean_loss(output, ranks) for output in expected).backward()
        for output, wanted in zip(outputs, expected, strict=True):
            differences.compare("output", output, wanted)
    differences.note_gradients()
    differences.compare_gradients("after all")
    differences.assert_none()


class Tied(nn.Module):
    """One weight in two layers, and a frozen layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.between = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.second.weight = self.first.weight
        self.between.requires_grad_(False)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def test_tied_and_frozen_layers():
    module = seeded(Tied)
    compare_training(module, make_plan(module, pick_weights(3), ("batch",)), SHAPE)
    module = seeded(Tied)
    module.first.requires_grad_(False)
    module.second.requires_grad_(False)
    plan = make_plan(module, pick_weights(3), ("batch",))
    model = hetmp.slice_model(module, plan)
    x, mine = (batch(SHAPE).requires_grad_() for _ in range(2))
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    (gradient,) = torch.autograd.grad(model(mine).square().sum(), mine)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_a_batch_without_images():
    """What torch makes of it: nothing, and gradients of zero."""
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1), nn.Flatten())
    )
    for schemes in (("batch",), ("batch", "filters")):
        model, reference = sliced_and_plain(module, schemes, 1)
        x = batch((0, *SHAPE[1:]))
        assert model(x).shape == reference(x).shape
        model(x).sum().backward()
        assert all(p.grad is not None and p.grad.numpy().sum() == 0 for p in model.parameters())
