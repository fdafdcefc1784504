"""Which channels must be cut alike, and the default plan that cuts them."""

from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers.reading import Running, read
from helpers.scheduling import check_states
from hetmp.core.partition import apportion
from hetmp.core.state import Sliced
from hetmp.models import build
from hetmp.slicing.channel_groups import channel_groups, plan_from_weights
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.schedule import CallStep, ExchangeStep
from hetmp.slicing.scheduler import schedule_model


def conv(before: int, after: int, **options) -> nn.Conv2d:
    return nn.Conv2d(before, after, 1, **options)


def groups_of(run, example_input=None, **layers: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """(units, block) of every piece of every layer that is given."""
    found = channel_groups(read(run, example_input, **layers))
    return {
        path: [(piece.group.units, piece.block) for piece in pieces]
        for path, pieces in found.pieces.items()
        if path in layers
    }


def numbers_of(run, example_input=None, **layers: nn.Module) -> dict[str, list[int]]:
    """The number of the group of every piece of every layer that is given."""
    found = channel_groups(read(run, example_input, **layers))
    return {
        path: [piece.group.number for piece in pieces]
        for path, pieces in found.pieces.items()
        if path in layers
    }


# --- by hand ------------------------------------------------------------------------------------


def test_layers_in_a_row_are_cut_on_their_own():
    found = channel_groups(read_graph(nn.Sequential(conv(3, 7), nn.ReLU(), conv(7, 5))))
    assert [(group.number, group.units, group.layers) for group in found.groups] == [
        (1, 7, ("0",)),
        (2, 5, ("2",)),
    ]
    assert [piece.block for pieces in found.pieces.values() for piece in pieces] == [1, 1]


def test_a_residual_sum_ties_its_operands():
    def run(self, x):
        y = self.a(x)
        return y + self.c(self.b(y))

    layers = {"a": conv(3, 6), "b": conv(6, 4), "c": conv(4, 6)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [2], "c": [1]}
    found = channel_groups(read(run, **layers))
    assert [group.layers for group in found.groups] == [("a", "c"), ("b",)]


def test_sums_over_several_blocks_are_one_group():
    def run(self, x):
        y = self.a(x)
        for block in (self.b, self.c):
            y = self.relu(y + block(y))
        return y

    layers = {"a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 6)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [1], "c": [1]}


def test_a_concatenation_has_a_piece_for_each_operand():
    def run(self, x):
        return torch.cat([self.a(x), self.b(x)], 1) + self.c(x)

    layers = {"a": conv(3, 4), "b": conv(3, 5), "c": conv(3, 9)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [2], "c": [1, 2]}
    assert groups_of(run, **layers)["c"] == [(4, 1), (5, 1)]


def test_a_concatenation_alone_ties_nothing():
    def run(self, x):
        return self.c(torch.cat([self.a(x), self.b(x)], 1))

    layers = {"a": conv(3, 4), "b": conv(3, 5), "c": conv(9, 2)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [2], "c": [3]}


def test_concatenations_that_are_cut_in_other_places():
    """Each end of an operand on either side ends a group."""

    def run(self, x):
        one = torch.cat([self.a(x), self.b(x)], 1)
        return one + torch.cat([self.c(x), self.d(x)], 1)

    layers = {"a": conv(3, 4), "b": conv(3, 5), "c": conv(3, 6), "d": conv(3, 3)}
    assert groups_of(run, **layers) == {
        "a": [(4, 1)],
        "b": [(2, 1), (3, 1)],
        "c": [(4, 1), (2, 1)],
        "d": [(3, 1)],
    }
    assert numbers_of(run, **layers)["c"] == [1, 2]


def test_halves_that_meet_are_cut_alike():
    """A gated unit: each channel lies on the rank of the channel that gates it."""

    def run(self, x):
        one, other = self.a(x).chunk(2, 1)
        return one * torch.sigmoid(other)

    assert groups_of(run, a=conv(3, 10)) == {"a": [(5, 1), (5, 1)]}
    assert numbers_of(run, a=conv(3, 10)) == {"a": [1, 1]}


def test_halves_that_do_not_meet_are_cut_on_their_own():
    def run(self, x):
        one, other = self.a(x).chunk(2, 1)
        return self.b(one) + self.c(other)

    layers = {"a": conv(3, 10), "b": conv(5, 2), "c": conv(5, 2)}
    assert numbers_of(run, **layers) == {"a": [1, 2], "b": [3], "c": [3]}


def test_a_depthwise_convolution_is_tied_to_what_it_takes():
    def run(self, x):
        return self.c(self.b(self.a(x)))

    layers = {"a": conv(3, 8), "b": conv(8, 8, groups=8), "c": conv(8, 4)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [1], "c": [2]}
    layers["b"], layers["c"] = conv(8, 16, groups=8), conv(16, 4)
    assert groups_of(run, **layers) == {"a": [(8, 1)], "b": [(8, 2)], "c": [(4, 1)]}


def test_groups_of_a_convolution_are_not_cut():
    layers = {"a": conv(3, 8), "b": conv(8, 12, groups=4)}
    found = groups_of(lambda self, x: self.b(self.a(x)), **layers)
    assert found == {"a": [(4, 2)], "b": [(4, 3)]}


@pytest.mark.parametrize(("number", "units"), [(4, (32, 1)), (16, (16, 2)), (32, (32, 1))])
def test_many_groups_of_a_norm_are_not_cut(number, units):
    layers = {"a": conv(3, 32), "b": nn.GroupNorm(number, 32)}
    assert groups_of(lambda self, x: self.b(self.a(x)), **layers) == {"a": [units]}


def test_a_gate_is_tied_to_what_it_gates():
    def run(self, x):
        y = self.a(x)
        squeezed = F.relu(self.b(y.mean((2, 3), keepdim=True)))
        return y * torch.sigmoid(self.c(squeezed))

    layers = {"a": conv(3, 8), "b": conv(8, 2), "c": conv(2, 8)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [2], "c": [1]}


@pytest.mark.parametrize("example_input", [None, torch.empty(2, 3, 4, 4)])
def test_shuffled_channels_take_turns(example_input):
    """Two halves, one channel of each after the other: written out, and as a function."""

    def written(self, x):
        y = self.a(x)
        n, c, h, w = y.shape
        return self.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w))

    def called(self, x):
        return self.b(F.channel_shuffle(self.a(x), 2))

    layers = {"a": conv(3, 8), "b": conv(8, 8, groups=8)}
    for run in (written, called):
        found = groups_of(run, example_input, **layers)
        assert found == {"a": [(4, 1), (4, 1)], "b": [(4, 2)]}
        assert numbers_of(run, example_input, **layers) == {"a": [1, 1], "b": [1]}


def test_flattened_channels_are_blocks():
    """Features 4 by 4 belong to a channel's 2 x 2 pixels."""

    def run(self, x):
        return self.c(self.a(x).flatten(1) * self.b(x.mean((2, 3))))

    layers = {"a": conv(3, 6), "b": nn.Linear(3, 24), "c": nn.Linear(24, 5)}
    found = groups_of(run, torch.empty(2, 3, 2, 2), **layers)
    assert found == {"a": [(6, 1)], "b": [(6, 4)], "c": [(5, 1)]}
    assert numbers_of(run, torch.empty(2, 3, 2, 2), **layers)["b"] == [1]


def test_pixel_shuffle_makes_blocks_of_channels():
    def run(self, x):
        return F.pixel_shuffle(self.a(x), 2) + self.b(F.interpolate(x, scale_factor=2))

    layers = {"a": conv(3, 8), "b": conv(3, 2)}
    assert groups_of(run, **layers) == {"a": [(2, 4)], "b": [(2, 1)]}


def test_a_shared_block_is_one_group_over_all_its_runs():
    def run(self, x):
        y = self.a(x)
        return self.b(y) + self.b(self.b(y)) + self.c(y)

    layers = {"a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 6)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [2], "c": [2]}


def test_a_norm_that_is_shared_ties_what_it_takes():
    def run(self, x):
        return self.norm(self.b(self.norm(self.a(x))))

    layers = {"a": conv(3, 6), "b": conv(6, 6), "norm": nn.BatchNorm2d(6)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [1]}


def test_a_slope_for_all_channels_ties_nothing():
    def run(self, x):
        return self.act(self.b(self.act(self.a(x))))

    layers = {"a": conv(3, 6), "b": conv(6, 4), "act": nn.PReLU()}
    assert numbers_of(run, **layers) == {"a": [1], "b": [2]}


def test_both_modes_tie():
    def run(self, x):
        a, b = self.a(x), self.b(x)
        return a + b if self.training else torch.cat([a, b], 1) + self.c(x)

    layers = {"a": conv(3, 6), "b": conv(3, 6), "c": conv(3, 12)}
    assert numbers_of(run, **layers) == {"a": [1], "b": [1], "c": [1, 1]}


def test_what_cannot_be_tied_is_left_alone():
    """Channels twice in a row and channels doubled: one order cannot be cut like the other."""

    def run(self, x):
        y = self.a(x)
        doubled = y.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2)
        return torch.cat([y, y], 1) + doubled

    assert groups_of(run, torch.empty(2, 3, 4, 4), a=conv(3, 8)) == {"a": [(8, 1)]}


def test_what_is_computed_whole_ties_nothing():
    def run(self, x):
        return self.a(x).flip(1) + self.b(x)

    assert numbers_of(run, a=conv(3, 6), b=conv(3, 6)) == {"a": [1], "b": [2]}


# --- networks by name ---------------------------------------------------------------------------


@cache
def network(name: str) -> ModelGraph:
    shapes = {"unet": (1, 32, 32), "resnet50": (3, 64, 64)}
    return read_graph(build(name, shapes.get(name, (3, 32, 32)), 5, width=1 / 8))


def test_resnet18_has_a_group_for_each_stage():
    groups = [group.layers for group in channel_groups(network("resnet18")).groups]
    assert groups[0] == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    stage = ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2")
    assert stage in [tuple(sorted(layers)) for layers in groups]
    # Four stages, a first convolution in each of eight blocks, and the classes.
    assert len(groups) == 4 + 8 + 1


def test_resnet50_has_a_group_for_each_stage():
    groups = [group.layers for group in channel_groups(network("resnet50")).groups]
    # The stem, four stages, two convolutions in each of 16 blocks, and the classes.
    assert len(groups) == 1 + 4 + 2 * 16 + 1
    assert ("conv1",) in groups


def test_mobilenet_v2_ties_depthwise_convolutions():
    found = channel_groups(network("mobilenet_v2"))
    groups = [group.layers for group in found.groups]
    assert ("features.2.conv.0.0", "features.2.conv.1.0") in groups
    assert ("features.2.conv.2", "features.3.conv.2") in groups
    # 17 expansions (the first is the stem's), 7 stages, the last convolution and the classes.
    assert len(groups) == 17 + 7 + 1 + 1


def test_densenet121_gives_every_layer_a_group():
    """Nothing is added, and what is concatenated keeps its pieces."""
    graph = network("densenet121")
    found = channel_groups(graph)
    assert len(found.groups) == len(list(graph.mixing()))
    assert all(len(pieces) == 1 for pieces in found.pieces.values())


def test_unet_gives_every_layer_a_group():
    graph = network("unet")
    assert len(channel_groups(graph).groups) == len(list(graph.mixing()))


# --- the default plan ---------------------------------------------------------------------------

NAMES = ("densenet121", "mobilenet_v2", "resnet18", "resnet50", "unet")

WEIGHTS = st.lists(st.integers(0, 100) | st.floats(0, 10), min_size=1, max_size=5).filter(any)


class Everything(nn.Module):
    """Every way in which channels are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = conv(3, 12), conv(12, 24)
        self.grouped, self.deep = conv(12, 18, groups=3), conv(18, 18, groups=18)
        self.side, self.norm = conv(12, 18), nn.BatchNorm2d(30)
        self.fc, self.scale = nn.Linear(30 * 4, 9), nn.Linear(3, 30 * 4)
        self.last, self.tied = nn.Linear(9, 9), nn.Linear(9, 9)
        self.tied.weight = self.last.weight

    def forward(self, x):
        y = self.stem(x)
        one, other = self.gate(y).chunk(2, 1)
        y = y + one * torch.sigmoid(other)
        z = self.deep(self.grouped(y)) + self.side(y)
        z = self.norm(torch.cat([y, z], 1))
        flat = z.flatten(1) * self.scale(x.mean((2, 3)))
        return self.tied(self.last(self.fc(flat)))


@cache
def everything() -> ModelGraph:
    return read_graph(Everything(), torch.empty(2, 3, 2, 2))


def graph_of(name: str) -> ModelGraph:
    return everything() if name == "everything" else network(name)


def test_everything_is_tied_as_it_should_be():
    pieces = {
        path: [(piece.group.number, piece.group.units, piece.block) for piece in found]
        for path, found in channel_groups(everything()).pieces.items()
    }
    assert pieces["stem"] == [(1, 3, 4)]
    assert pieces["gate"] == [(1, 3, 4), (1, 3, 4)]
    assert pieces["grouped"] == pieces["deep"] == pieces["side"] == [(1, 3, 6)]
    assert pieces["scale"] == [(1, 3, 16), (1, 3, 24)]


@pytest.mark.parametrize("name", ["everything", *NAMES])
@settings(max_examples=25)
@given(weights=WEIGHTS)
@example(weights=[70, 25, 5])
@example(weights=[1])
@example(weights=[0, 3, 0])
def test_the_default_plan_for_any_weights(name, weights):
    """Pieces fill the counts, groups are shared in proportion, blocks are never cut."""
    graph = graph_of(name)
    plan, found = plan_from_weights(graph, weights), channel_groups(graph)
    assert plan.ranks == len(weights)
    assert [layer.name for layer in plan.layers] == [node.path for node in graph.mixing()]
    for layer, node in zip(plan.layers, graph.mixing(), strict=True):
        pieces = found.pieces[layer.name]
        expected = [
            tuple(count * piece.block for count in apportion(piece.group.units, weights).counts)
            for piece in pieces
        ]
        assert list(layer.pieces or (layer.counts,)) == expected
        assert layer.counts == tuple(map(sum, zip(*expected, strict=True)))
        assert sum(layer.counts) == layer.channels
        assert layer.scheme == ("whole" if graph.is_tied(node) else "filters")
        assert layer.kind == type(node.call.layer).__name__


@pytest.mark.parametrize("name", ["everything", *NAMES])
@settings(max_examples=25)
@given(weights=WEIGHTS)
def test_what_is_tied_meets_without_an_exchange(name, weights):
    """Slices never move to other ranks, and no layer with groups has one cut."""
    graph = graph_of(name)
    made = schedule_model(graph, plan_from_weights(graph, weights))
    check_states(made)
    for step in made.steps:
        if isinstance(step, ExchangeStep):
            assert not (isinstance(step.before, Sliced) and isinstance(step.after, Sliced))
        elif isinstance(step, CallStep) and getattr(step.run.layer, "groups", 1) > 1:
            layer = step.run.layer
            assert step.after.layout.grouped(layer.out_channels // layer.groups) is not None


def test_tied_parameters_follow_whole():
    plan = plan_from_weights(everything(), (2, 1))
    assert [x.name for x in plan.layers if x.scheme == "whole"] == ["last", "tied"]


def test_a_layer_whose_weight_forward_looks_at_follows_whole():
    graph = read_graph(Running(lambda self, x: self.conv(x) * self.conv.weight.abs().max()))
    assert [layer.scheme for layer in plan_from_weights(graph, (2, 1)).layers] == ["whole"]


def test_ties_that_leave_no_unit_whole_are_given_up():
    """A difference of neighbours would put every channel on the fastest rank."""

    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            y = self.a(x)
            return y[:, 1:] - y[:, :-1]

    (layer,) = plan_from_weights(read_graph(Neighbours()), (3, 1)).layers
    assert layer.counts == (6, 2)
    assert layer.pieces == ()
