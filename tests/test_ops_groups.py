"""Convolutions with groups, sliced and trained: equal to the unsliced module."""

import pytest
from torch import nn

import hetmp
from cases.grouped_layers import CONV, GROUPED, SCHEMES, SIZES
from helpers.comparison import (
    compare_training,
    make_plan,
    pick_weights,
    plan_on_images,
    seeded,
)


def twice(name: str) -> nn.Module:
    """The layer between two convolutions, and again behind them."""
    dims, taken, given, make = GROUPED[name]
    conv = CONV[dims]
    return nn.Sequential(
        conv(3, taken, 1), nn.Tanh(), make(), nn.Tanh(), conv(given, taken, 1), make(), nn.GELU(),
        conv(given, 5, 1),
    )  # fmt: skip


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", GROUPED)
def test_the_default_plan_moves_nothing_into_groups(name):
    """The layer before is cut where the groups end: its slices are taken as they are."""
    number = list(GROUPED).index(name)
    module = seeded(lambda: twice(name))
    model, _ = compare_training(module, pick_weights(number), SIZES[GROUPED[name][0]])
    if module[2].groups > 1:
        assert len(model.hetmp.exchanges) == 3  # before each plain convolution, and at the end


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", GROUPED)
def test_plans_that_cut_every_layer_in_its_own_way(name):
    number = list(GROUPED).index(name)
    module = seeded(lambda: twice(name))
    plan = make_plan(module, pick_weights(number + 2), SCHEMES[number % 3], turned=True)
    compare_training(module, plan, SIZES[GROUPED[name][0]])


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", GROUPED)
def test_on_images(name):
    number, shape = list(GROUPED).index(name), SIZES[GROUPED[name][0]]
    module = seeded(lambda: twice(name))
    plan = plan_on_images(module, pick_weights(number), number, shape)
    compare_training(module, plan, shape, steps=1)


@pytest.mark.mpi
def test_separable_blocks_in_a_row():
    """Depthwise and pointwise in turns, with norms and a stride, one layer used twice."""

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
            self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
            self.norm = nn.BatchNorm2d(12)
            self.point = nn.Conv2d(12, 12, 1, groups=4)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            x = self.stem(x)
            for _ in range(2):
                x = x + self.point(self.norm(self.depth(x)).relu())
            return self.head(x.mean((2, 3)))

    compare_training(seeded(Blocks), pick_weights(1), (3, 3, 8, 9))
    module = seeded(Blocks)
    plan = make_plan(module, pick_weights(4), ("filters", "filters", "whole"), turned=True)
    compare_training(module, plan, (3, 3, 8, 9))


@pytest.mark.mpi(min_size=2)
def test_a_plan_that_cuts_inside_a_group_is_refused():
    module = seeded(lambda: twice("conv2d-3"))
    plan = make_plan(module, [1.0] * hetmp.Group().size)
    ranks = plan.ranks
    counts = (1, *hetmp.apportion(14, [1.0] * (ranks - 1)).counts)
    with pytest.raises(hetmp.HetmpError, match="inside one of its 3 groups"):
        hetmp.slice_model(module, plan.with_layer("2", counts=counts))
