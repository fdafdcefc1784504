"""Pooling that gives indices, and what puts maxima back: equal to the unsliced module."""

import pytest
import torch
from torch import nn

from cases.unpooling import CASES, Remembering
from helpers.comparison import compare_training, make_plan, pick_weights, seeded
from helpers.functional import check
from hetmp import slice_model
from hetmp.core.state import Sliced
from hetmp.slicing.schedule import CallStep


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_function(name):
    """Under the default plan slices stay slices where they can, under any plan it is equal."""
    check(CASES[name], list(CASES).index(name))


@pytest.mark.mpi
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("schemes", [("filters",), ("inputs", "filters"), ("whole", "filters")])
def test_layers(dims, schemes):
    """Values and indices that are cut unlike meet in slices."""
    plan = make_plan(Remembering(dims), pick_weights(dims), schemes, turned=True)
    shape = (2, 2, *(9, 5, 4)[:dims])
    compare_training(seeded(lambda: Remembering(dims)), plan, shape, example=True)


@pytest.mark.mpi
def test_layers_stay_sliced():
    """Nothing is gathered between a pooling and its unpooling but for the convolutions."""
    model = slice_model(Remembering(2), pick_weights(0), example_input=torch.empty(2, 2, 9, 5))
    calls = [step for step in model.hetmp.schedule.training.steps if isinstance(step, CallStep)]
    pools = (nn.MaxPool2d, nn.MaxUnpool2d)
    layers = [step for step in calls if isinstance(step.run.layer, pools)]
    assert len(layers) == 4
    for step in layers:
        gives = step.after if isinstance(step.after, tuple) else (step.after,)
        assert step.node.reason is None
        assert all(isinstance(state, Sliced) for state in gives)
