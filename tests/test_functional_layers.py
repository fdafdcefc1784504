"""Functions that a module calls with its own parameters are layers, sliced as any other."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hetmp
from helpers.comparison import batch, compare_training, make_plan, pick_weights, seeded, world_size
from hetmp.core.state import Sliced
from hetmp.slicing.graph import read_graph
from hetmp.slicing.schedule import CallStep

SHAPE = (3, 3, 7, 6)

"""The functions that are compared here."""


class SamePadded(nn.Conv2d):
    """A convolution that pads its input by what its size asks for."""

    def forward(self, x):
        wanted = [math.ceil(size / 2) * 2 for size in x.shape[-2:]]
        x = F.pad(x, [0, wanted[1] - x.shape[-1], 0, wanted[0] - x.shape[-2]])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class PaddedBy(nn.Conv2d):
    """A convolution with a layer inside."""

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.pad = nn.ZeroPad2d(1)

    def forward(self, x):
        return F.conv2d(self.pad(x), self.weight, stride=self.stride, groups=self.groups)


class Depthwise(nn.Conv2d):
    """Only made in another way."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, groups=channels)


class ChannelsFirst(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Plain(nn.Module):
    """No layer at all."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(shape[0]))


class Linear(Plain):
    def forward(self, x):
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class Upwards(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return F.conv_transpose2d(x, self.weight, stride=2)


class Slopes(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        return F.prelu(x, self.weight)


class Groups(nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, eps=1e-3)


class Doubled(nn.MaxPool2d):
    """A layer without parameters that does more."""

    def forward(self, x):
        return 2 * super().forward(F.pad(x, (1, 1, 0, 0)))


class Bare(nn.Module):
    """Norms without parameters."""

    def forward(self, x):
        return F.layer_norm(F.instance_norm(x).sin(), x.shape[2:])


CASES = {
    "pooling that does more": (lambda: Doubled(2), 7),
    "norms without parameters": (Bare, 7),
    "same-padded": (lambda: SamePadded(7, 11, 3, stride=2), 11),
    "same-padded depthwise": (lambda: SamePadded(7, 7, 3, groups=7, bias=False), 7),
    "with a layer inside": (lambda: PaddedBy(7, 8, 2, bias=False), 8),
    "made in another way": (lambda: Depthwise(7), 7),
    "layer norm of channels": (lambda: ChannelsFirst(7), 7),
    "linear": (lambda: Linear(5, 7), 5),
    "transposed": (lambda: Upwards(7, 4, 2, 2), 4),
    "prelu": (lambda: Slopes(7), 7),
    "group norm": (lambda: Groups(7, 7), 7),
}


def network(layer: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 7, 1), nn.Tanh(), layer, nn.Conv2d(channels, 5, 1))


@pytest.mark.parametrize("name", CASES)
def test_nothing_falls_back(name):
    build, channels = CASES[name]
    graph = read_graph(network(build(), channels), torch.empty(SHAPE))
    assert not list(graph.fallbacks())
    assert not [node.path for node in graph.mixing() if graph.is_tied(node)]


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_the_unsliced_module(name, number):
    build, channels = CASES[name]
    module = seeded(lambda: network(build(), channels))
    compare_training(module, pick_weights(number), SHAPE, example=True)


@pytest.mark.mpi
@pytest.mark.parametrize("scheme", ["inputs", "whole", "batch"])
def test_it_follows_other_schemes(scheme):
    module = seeded(lambda: network(SamePadded(7, 11, 3), 11))
    weights = pick_weights(3)
    plan = make_plan(module, weights, ("filters", scheme, "filters"))
    compare_training(module, plan, SHAPE, example=True)


class Twice(nn.Conv2d):
    def forward(self, x):
        y = F.conv2d(x, self.weight, self.bias, padding=1)
        return y + F.conv2d(y, self.weight, self.bias, padding=self.again)


@pytest.mark.mpi
@pytest.mark.parametrize("again", [1, (1, 1)], ids=["alike", "in another way"])
def test_a_parameter_that_two_calls_use(again):
    """The same layer twice; or a layer and a function with one parameter, which is whole."""
    module = seeded(lambda: network(Twice(7, 7, 3), 7))
    module[2].again = again
    compare_training(module, pick_weights(1), SHAPE, example=True)


class Standardised(nn.Conv2d):
    """Its weight is computed before it is used, from all filters."""

    def forward(self, x):
        weight = self.weight - self.weight.mean()
        return F.conv2d(x, weight, self.bias, 1, 0, 1, self.groups)


class Upscaled(nn.ConvTranspose2d):
    def forward(self, x):
        weight = self.weight / self.weight.norm()
        return F.conv_transpose2d(x, weight, bias=self.bias, stride=2, groups=self.groups)


class Blurred(nn.Module):
    """A filter for every channel, which is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), groups=x.shape[1])


class Normed(nn.Linear):
    def forward(self, x):
        weight = self.weight / self.weight.norm()
        y = F.linear(x.permute(0, 2, 3, 1), weight, self.bias)
        return y.permute(0, 3, 1, 2)


COMPUTED = {
    "standardised": (lambda: Standardised(7, 5, 3), 5),
    "standardised groups": (lambda: Standardised(7, 14, 3, groups=7), 14),
    "transposed": (lambda: Upscaled(7, 5, 2), 5),
    "transposed groups": (lambda: Upscaled(7, 14, 2, groups=7), 14),
    "blurred": (Blurred, 7),
    "linear": (lambda: Normed(7, 5), 5),
}


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", COMPUTED)
def test_a_weight_that_no_layer_owns(name, number):
    """It is whole on every rank, for each filter needs all; the ranks divide the filters."""
    build, channels = COMPUTED[name]
    module = seeded(lambda: network(build(), channels))
    assert not list(read_graph(module, batch(SHAPE)).fallbacks())
    model, _ = compare_training(module, pick_weights(number), SHAPE, example=True)
    names = ("conv2d", "conv_transpose2d", "linear")
    (step,) = (
        step
        for step in model.hetmp.schedule.steps
        if isinstance(step, CallStep) and step.node.call.title in names
    )
    assert isinstance(step.after, Sliced)


class Watchful(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.conv(x) if x.shape[2] == x.shape[3] else self.conv(x.transpose(2, 3))


@pytest.mark.mpi
def test_another_decision_than_in_the_example_is_refused():
    weights = [1.0] * world_size()
    model = hetmp.slice_model(seeded(Watchful), weights, example_input=batch((2, 3, 4, 4)))
    assert model(batch((3, 3, 6, 6))).shape == (3, 5, 6, 6)
    with pytest.raises(hetmp.HetmpError, match=r"depends on a number at .* that is False here"):
        model(batch((2, 3, 4, 6)))


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 1)

    def forward(self, x):
        y = self.conv(x)
        y[:, :, 0] = 0.5
        z = y * 2
        z[:, 1:3] = x[:, :2] * 3
        return z.sum(1)


@pytest.mark.mpi
def test_assignments_into_parts():
    """The first takes all channels and stays on slices, the second does not."""
    module = seeded(Part)
    compare_training(module, pick_weights(0), SHAPE, example=True)
