"""Any scheme for any layer, of weights of any kind: equal to the unsliced module."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers.comparison import MIXING, compare_training, make_plan, seeded, world_size
from hetmp.ops import SCHEMES

pytestmark = pytest.mark.mpi

SHAPE = (5, 2, 4, 4)


class Residual(nn.Module):
    """What goes around a block is added to what went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.norm, self.two = nn.BatchNorm2d(5), nn.Conv2d(5, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x).tanh()
        x = x + self.two(self.norm(self.one(x)).tanh())
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """An encoder whose results the decoder takes again, beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.lower = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.up, self.join = nn.ConvTranspose2d(6, 3, 2, stride=2), nn.Conv2d(7, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        kept = self.norm(self.down(x)).tanh()
        x = self.lower(F.avg_pool2d(kept, 2)).tanh()
        return self.join(torch.cat([kept, self.up(x)], 1))


class Separable(nn.Module):
    """A depthwise convolution, halves that change places, and a flat head."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.depth = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.norm, self.mix = nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        one, two = self.norm(self.depth(self.point(x))).chunk(2, 1)
        x = self.mix(torch.cat([two.tanh(), one], 1))
        return self.head(x.view(x.size(0), -1)), x


ZOO = {kind.__name__: kind for kind in (Residual, UNet, Separable)}

SHARES = st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=8, max_size=8)


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=8)
@given(
    schemes=st.lists(st.sampled_from(sorted(SCHEMES)), min_size=5, max_size=5),
    shares=SHARES,
    turned=st.booleans(),
)
def test_any_scheme_for_any_layer(name, schemes, shares, turned):
    module, weights = seeded(ZOO[name]), shares[: world_size()]
    if not any(weights):
        weights[-1] = 1.0
    layers = sum(isinstance(part, MIXING) for part in module.modules())
    plan = make_plan(module, weights, schemes[:layers], turned=turned)
    compare_training(module, plan, SHAPE, steps=1, example=turned)
