"""Normalization within and across slices, sliced and trained: equal to the unsliced module."""

import pytest
from torch import nn

from cases.norms import CONV, NORMS, SCHEMES, SIZES
from helpers.comparison import (
    compare_training,
    make_plan,
    pick_weights,
    plan_on_images,
    seeded,
    world_size,
)
from hetmp.ops.layers.group_norm import SharedGroupNorm, SharedLayerNorm
from hetmp.ops.own_forward import own_forward


def between(name: str) -> nn.Module:
    """The norm between two layers that mix channels."""
    dims, channels, make = NORMS[name]
    if dims == 2:
        return nn.Sequential(nn.Linear(6, channels), make(), nn.Tanh(), nn.Linear(channels, 5))
    conv = CONV[dims]
    return nn.Sequential(conv(3, channels, 1), make(), nn.Tanh(), conv(channels, 5, 2))


@pytest.mark.mpi
@pytest.mark.parametrize("name", NORMS)
def test_default_plan(name):
    number = list(NORMS).index(name)
    module = seeded(lambda: between(name))
    model, reference = compare_training(
        module, pick_weights(number), SIZES[NORMS[name][0]], example=True
    )
    if name in ("group-16", "group-17", "group-each"):
        assert not any(isinstance(own_forward(part), SharedGroupNorm) for part in model.modules())
    compare_training(
        reference.eval(), pick_weights(number), SIZES[NORMS[name][0]], steps=1, example=True
    )


@pytest.mark.mpi
@pytest.mark.parametrize("name", NORMS)
def test_plan_by_layer(name):
    number = list(NORMS).index(name)
    module = seeded(lambda: between(name))
    plan = make_plan(module, pick_weights(number + 3), SCHEMES[number % 4], turned=True)
    compare_training(module, plan, SIZES[NORMS[name][0]], example=True)


@pytest.mark.mpi
@pytest.mark.parametrize("name", NORMS)
def test_on_images(name):
    """Statistics of an image need no exchange, where the image lies on one rank."""
    number, shape = list(NORMS).index(name), SIZES[NORMS[name][0]]
    module = seeded(lambda: between(name))
    plan = plan_on_images(module, pick_weights(number), number, shape)
    model, _ = compare_training(module, plan, shape, steps=1, example=True)
    if number % 5 == 0:  # all layers that mix channels on images
        own = {type(own_forward(part)) for part in model.modules()}
        assert not own & {SharedGroupNorm, SharedLayerNorm}


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [("filters",), ("batch", "filters")])
def test_one_image_whose_gradient_lies_as_channels_last(schemes):
    """As behind a convolution that runs so: torch's own instance norm takes it for another one."""
    for name in ("instance2d-bare", "instance2d-all"):
        module = seeded(lambda name=name: between(name))
        plan = make_plan(module, pick_weights(1), schemes)
        compare_training(module, plan, (1, *SIZES[4][1:]), steps=1)


@pytest.mark.mpi(min_size=2)
def test_statistics_across_ranks_are_summed_where_they_must_be():
    """One number per sample and group is exchanged, not the activation."""
    weights = [float(rank + 1) for rank in range(world_size())]
    for name, shared in [
        ("group-1", SharedGroupNorm),
        ("layer-last", SharedLayerNorm),
        ("layer-all", SharedLayerNorm),
        ("layer-width", None),
    ]:
        module = seeded(lambda name=name: between(name))
        model, _ = compare_training(module, weights, SIZES[4], steps=1, example=True)
        own = {type(own_forward(part)) for part in model.modules()}
        assert own & {SharedGroupNorm, SharedLayerNorm} == ({shared} if shared else set())
        assert len(model.hetmp.exchanges) == 2  # before the last convolution, and at the end
