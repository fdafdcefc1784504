"""Attention inside a convolutional network, written with einops and without: cut by heads."""

import pytest
from torch import nn

from helpers.comparison import batch, compare_training, pick_weights, seeded
from hetmp.core.state import Sliced
from hetmp.slicing.graph import read_graph
from hetmp.slicing.schedule import CallStep

HEADS, WIDTH = 6, 2
SHAPE = (2, 3, 4, 3)


class Attention(nn.Module):
    """Every pixel attends to every other; the heads' channels lie one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        inner = HEADS * WIDTH
        self.before = nn.Conv2d(3, 5, 1)
        self.query, self.key, self.value = (nn.Conv2d(5, inner, 1) for _ in range(3))
        self.after = nn.Conv2d(inner, 4, 1)

    def forward(self, x):
        x = self.before(x)
        heads = (self.split(project(x)) for project in (self.query, self.key, self.value))
        return self.after(self.join(self.attend(*heads), x.shape[-2:]))

    def split(self, x):
        """(n, heads * width, h, w) -> (n, heads, pixels, width)."""
        return x.reshape(x.shape[0], HEADS, WIDTH, -1).transpose(2, 3)

    def join(self, x, size):
        """The way back."""
        return x.transpose(2, 3).reshape(x.shape[0], HEADS * WIDTH, *size)

    def attend(self, query, key, value):
        scores = query @ key.transpose(-1, -2) / WIDTH**0.5
        return scores.softmax(-1) @ value


class Fused(Attention):
    def attend(self, query, key, value):
        return nn.functional.scaled_dot_product_attention(query, key, value)


class Rearranged(Attention):
    def split(self, x):
        einops = pytest.importorskip("einops")
        return einops.rearrange(x, "n (h c) y x -> n h (y x) c", h=HEADS)

    def join(self, x, size):
        einops = pytest.importorskip("einops")
        return einops.rearrange(x, "n h (y x) c -> n (h c) y x", y=size[0])

    def attend(self, query, key, value):
        einops = pytest.importorskip("einops")
        scores = einops.einsum(query, key, "n h i c, n h j c -> n h i j") / WIDTH**0.5
        return einops.einsum(scores.softmax(-1), value, "n h i j, n h j c -> n h i c")


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", [Attention, Fused, Rearranged])
def test_heads_keep_apart(kind, number):
    """Nothing is gathered between the convolutions before and behind the attention."""
    module = seeded(kind)
    if kind is Rearranged:
        pytest.importorskip("einops")
    model, _ = compare_training(module, pick_weights(number), SHAPE, example=True)
    assert not list(model.hetmp.graph.fallbacks())
    calls = [step for step in model.hetmp.schedule.steps if isinstance(step, CallStep)]
    inside = [step for step in calls if step.node.path == "" and step.node.call.result.is_tensor]
    assert inside
    assert all(isinstance(step.after, Sliced) for step in inside)


class Shuffled(nn.Module):
    """What einops calls layers, and a reduction."""

    def __init__(self) -> None:
        super().__init__()
        layers = pytest.importorskip("einops.layers.torch")
        self.net = nn.Sequential(
            nn.Conv2d(3, 12, 1),
            layers.Rearrange("n (c a b) y x -> n c (y a) (x b)", a=2, b=2),
            nn.Conv2d(3, 7, 1),
            layers.Reduce("n c (y a) (x b) -> n c y x", "mean", a=2, b=2),
            nn.Conv2d(7, 4, 1),
        )

    def forward(self, x):
        return self.net(x)


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(2))
def test_layers_of_einops(number):
    pytest.importorskip("einops")
    module = seeded(Shuffled)
    compare_training(module, pick_weights(number), SHAPE, example=True)
    assert not list(read_graph(module, batch(SHAPE)).fallbacks())
