"""What works along some axes, repeats or compares: equal to the unsliced module, on slices."""

import pytest

from cases.axes import CASES, Layers
from helpers.comparison import compare_training, pick_weights, seeded
from helpers.functional import check
from hetmp.slicing.schedule import CallStep


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_function(name):
    """Under the default plan slices stay slices where they can, under any plan it is equal."""
    check(CASES[name], list(CASES).index(name))


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(3))
def test_layers(number):
    """Layers are as their functions are."""
    weights = pick_weights(number)
    model, _ = compare_training(seeded(Layers), weights, (3, 3, 4, 6), example=True)
    steps = [one for one in model.hetmp.schedule.steps if isinstance(one, CallStep)]
    gives = {one.node.path: str(one.after) for one in steps if one.run.layer is not None}
    assert all(one.node.reason is None for one in steps)
    assert all(gives[name].startswith("sliced") for name in ("gate", "patches", "image", "alike"))
    assert {gives[f"losses.{number}"] for number in range(4)} == {"partial"}
