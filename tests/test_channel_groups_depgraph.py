"""Channel groups beside those of DepGraph, which finds them for structural pruning.

What must be pruned together must be cut together: for every output channel of every convolution
and linear layer, DepGraph tells the output channels that have to go with it. They are those at
the same place of the same group here. torch-pruning follows autograd's graph of a real run, so
nothing is shared with how hetmp finds them.

Source: G. Fang, X. Ma, M. Song, M. B. Mi, X. Wang, "DepGraph: towards any structural pruning",
CVPR 2023.
"""

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.comparison import MIXING
from helpers.reading import Running
from hetmp.models import build
from hetmp.slicing.channel_groups import channel_groups
from hetmp.slicing.graph import read_graph

Together = dict[tuple[str, int], frozenset[tuple[str, int]]]
"""(layer, output channel) -> all that go with it, itself among them."""


def told_by_depgraph(model: nn.Module, x: Tensor) -> Together:
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(model, example_inputs=x, verbose=False)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, MIXING)}
    together: Together = {}
    for layer, name in names.items():
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        for channel in range(graph.get_out_channels(layer)):
            found = {
                (names[dependency.target.module], int(index))
                for dependency, indices in graph.get_pruning_group(layer, prune, [channel])
                if dependency.target.module in names
                and graph.is_out_channel_pruning_fn(dependency.handler)
                for index in indices
            }
            together[name, channel] = frozenset(found)
    return together


def told_by_groups(model: nn.Module, x: Tensor | None) -> Together:
    units: dict[tuple[int, int], set[tuple[str, int]]] = {}
    for path, pieces in channel_groups(read_graph(model, x)).pieces.items():
        channels = [
            (piece.group.number, unit)
            for piece in pieces
            for unit in range(piece.group.units)
            for _ in range(piece.block)
        ]
        for channel, unit in enumerate(channels):
            units.setdefault(unit, set()).add((path, channel))
    return {one: frozenset(unit) for unit in units.values() for one in unit}


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("resnet18", (3, 32, 32), 1 / 8),
        ("resnet50", (3, 64, 64), 1 / 16),
        ("mobilenet_v2", (3, 32, 32), 1 / 8),
        pytest.param("densenet121", (3, 32, 32), 1 / 16, marks=pytest.mark.thorough),
        ("unet", (1, 32, 32), 1 / 16),
        ("vgg11", (3, 64, 64), 1 / 16),
    ],
)
def test_the_networks(name, shape, width):
    """With an example of the input, and without."""
    model = build(name, shape, 5, width=width).eval()
    x = torch.zeros(2, *shape)
    theirs = told_by_depgraph(model, x)
    assert told_by_groups(model, x) == theirs
    assert told_by_groups(model, None) == theirs


def conv(before: int, after: int, **options) -> nn.Conv2d:
    return nn.Conv2d(before, after, 1, **options)


def both(run, x: Tensor, **layers: nn.Module) -> tuple[Together, Together]:
    model = Running(run, **layers).eval()
    for unused in {"conv", "norm", "relu"} - set(layers):
        delattr(model, unused)
    return told_by_groups(model, x), told_by_depgraph(model, x)


X = torch.zeros(2, 3, 4, 4)


def residual(self, x):
    y = self.a(x)
    return self.c(y + self.b(F.relu(y)))


def concatenation(self, x):
    return self.norm(torch.cat([self.a(x), self.b(x)], 1)) + self.c(x)


def concatenation_of_one(self, x):
    y = self.a(x)
    return torch.cat([y, y], 1) + self.c(x)


def halves(self, x):
    one, other = self.a(x).chunk(2, 1)
    return self.b(one * torch.sigmoid(other))


def split(self, x):
    one, other = self.a(x).split([3, 5], 1)
    return self.b(one) + self.c(other)


def part(self, x):
    return self.a(x)[:, :3] + self.b(x)


def flattened(self, x):
    return self.c(self.a(x).flatten(1) * self.b(x.mean((2, 3))))


def gated(self, x):
    y = self.a(x)
    return y * torch.sigmoid(self.c(F.relu(self.b(F.adaptive_avg_pool2d(y, 1)))))


def gated_by_linear(self, x):
    y = self.a(x)
    return y * torch.sigmoid(self.c(F.relu(self.b(y.mean((2, 3)))))).view(2, 8, 1, 1)


def added(self, x):
    return self.c(self.norm(self.a(x)) + self.b(x))


def deep(self, x):
    return self.c(self.b(self.a(x)))


def largest(self, x):
    return self.c(torch.stack([self.a(x), self.b(x)]).mean(0))


@pytest.mark.parametrize(
    ("run", "layers"),
    [
        (residual, {"a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 2)}),
        (
            concatenation,
            {"a": conv(3, 4), "b": conv(3, 5), "norm": nn.BatchNorm2d(9), "c": conv(3, 9)},
        ),
        (concatenation_of_one, {"a": conv(3, 4), "c": conv(3, 8)}),
        (halves, {"a": conv(3, 8), "b": conv(4, 2)}),
        (split, {"a": conv(3, 8), "b": conv(3, 2), "c": conv(5, 2)}),
        (part, {"a": conv(3, 8), "b": conv(3, 3)}),
        (flattened, {"a": conv(3, 6), "b": nn.Linear(3, 96), "c": nn.Linear(96, 5)}),
        (gated, {"a": conv(3, 8), "b": conv(8, 2), "c": conv(2, 8)}),
        (gated_by_linear, {"a": conv(3, 8), "b": nn.Linear(8, 2), "c": nn.Linear(2, 8)}),
        (deep, {"a": conv(3, 6), "b": conv(6, 6, groups=6), "c": conv(6, 2)}),
        (deep, {"a": conv(3, 6), "b": nn.ConvTranspose2d(6, 6, 2, groups=6), "c": conv(6, 2)}),
        (added, {"a": conv(3, 6), "b": conv(3, 6), "norm": nn.PReLU(6), "c": conv(6, 2)}),
        (added, {"a": conv(3, 6), "b": conv(3, 6), "norm": nn.InstanceNorm2d(6), "c": conv(6, 2)}),
        (added, {"a": conv(3, 6), "b": conv(3, 6), "norm": nn.GroupNorm(3, 6), "c": conv(6, 2)}),
        (
            added,
            {"a": nn.ConvTranspose2d(3, 6, 1), "b": conv(3, 6), "norm": nn.ReLU(), "c": conv(6, 2)},
        ),
        (largest, {"a": conv(3, 6), "b": conv(3, 6), "c": conv(6, 2)}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_small_modules(run, layers):
    ours, theirs = both(run, X, **layers)
    assert ours == theirs


def test_layer_norm():
    layers = {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "c": nn.Linear(6, 2)}
    ours, theirs = both(added, torch.zeros(2, 6), norm=nn.LayerNorm(6), **layers)
    assert ours == theirs


# --- where the two differ -----------------------------------------------------------------------


def goes_with(together: Together, layer: str, channel: int) -> set[tuple[str, int]]:
    return set(together[layer, channel])


def test_groups_of_a_convolution_stay_together():
    """A rank runs whole groups; DepGraph prunes inside them, and leaves it to its pruner to
    take as many from each."""
    layers = {"a": conv(3, 6), "b": conv(6, 6, groups=2), "c": conv(6, 2)}
    ours, theirs = both(deep, X, **layers)
    first = {(name, channel) for name in "ab" for channel in range(3)}
    assert goes_with(ours, "a", 0) == first
    assert goes_with(theirs, "a", 0) == {("a", 0)}
    assert all(theirs[one] <= ours[one] for one in ours)


def test_fine_groups_of_a_group_norm_stay_together():
    """From 16 groups on, so that no statistic is summed over ranks: a choice, not a need."""
    layers = {"a": conv(3, 32), "b": nn.GroupNorm(16, 32), "c": conv(32, 2)}
    ours, theirs = both(deep, X, **layers)
    assert goes_with(ours, "a", 0) == {("a", 0), ("a", 1)}
    assert goes_with(theirs, "a", 0) == {("a", 0)}
    assert all(theirs[one] <= ours[one] for one in ours)


def test_a_shared_layer_takes_all_its_channels_in_each_run():
    """DepGraph prunes a shared layer's input channels too, which ties what its runs take."""

    def run(self, x):
        return self.c(self.a(x)) + self.c(self.b(x))

    ours, theirs = both(run, X, a=conv(3, 6), b=conv(3, 6), c=conv(6, 6))
    assert goes_with(ours, "a", 0) == {("a", 0)}
    assert goes_with(theirs, "a", 0) == {("a", 0), ("b", 0)}
    assert goes_with(ours, "c", 0) == goes_with(theirs, "c", 0) == {("c", 0)}


def test_shuffles_move_channels():
    """To DepGraph every function that it does not know is elementwise."""
    layers = {"a": conv(3, 8), "b": nn.ChannelShuffle(2), "c": conv(8, 8, groups=8)}
    ours, theirs = both(deep, X, **layers)
    assert goes_with(theirs, "a", 1) == {("a", 1), ("c", 1)}
    assert goes_with(ours, "a", 1) == {("a", 1), ("a", 5), ("c", 2), ("c", 3)}
    order = nn.ChannelShuffle(2)(torch.arange(8.0).view(1, 8, 1, 1)).flatten().tolist()
    assert [order[2], order[3]] == [1, 5]
