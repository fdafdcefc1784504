"""Where exchanges stand, and how states pass from step to step: no MPI."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from helpers.comparison import SCHEMES, make_plan
from helpers.scheduling import GATHER, check_states, told
from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL, Sliced
from hetmp.slicing.graph import read_graph
from hetmp.slicing.schedule import CallStep, Schedule
from hetmp.slicing.scheduler import schedule_model

EXAMPLE = torch.empty(2, 3, 12, 12)

WEIGHTS = (3, 0, 2)


def schedule(
    *layers: nn.Module,
    schemes: Sequence[str] = ("filters",),
    weights: Sequence[float] = WEIGHTS,
    example: torch.Tensor | None = EXAMPLE,
) -> Schedule:
    module = nn.Sequential(*layers)
    return schedule_model(read_graph(module, example), make_plan(module, weights, schemes))


def test_a_gather_waits_until_channelwise_work_is_done():
    """So that pooling makes the message small."""
    made = schedule(
        nn.Conv2d(3, 7, 3),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Conv2d(7, 5, 3),
    )
    assert told(made) == [
        "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Dropout", GATHER, "Conv2d", GATHER,
    ]  # fmt: skip


def test_one_exchange_between_two_convolutions():
    made = schedule(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1), nn.Conv2d(5, 4, 1))
    assert told(made) == ["Conv2d", GATHER, "Conv2d", GATHER, "Conv2d", GATHER]


def test_a_pair_of_filters_and_inputs_saves_an_exchange():
    """What the first cuts the second takes; the sum goes where the next layer wants it."""
    made = schedule(
        nn.Conv2d(3, 7, 1),
        nn.ReLU(),
        nn.Conv2d(7, 5, 1),
        nn.Conv2d(5, 4, 1),
        schemes=("filters", "inputs", "filters"),
    )
    assert told(made) == [
        "Conv2d", "ReLU", "Conv2d", "partial -> full", "+ bias", "Conv2d", GATHER,
    ]  # fmt: skip
    assert made.steps[2].before == made.steps[1].after


def test_a_sum_is_scattered_where_channelwise_work_follows():
    made = schedule(
        nn.Conv2d(3, 7, 1, bias=False),
        nn.BatchNorm2d(7),
        nn.Conv2d(7, 5, 1, bias=False),
        schemes=("inputs", "filters"),
    )
    assert told(made) == [
        "full -> sliced", "Conv2d", "partial -> sliced", "BatchNorm2d", GATHER, "Conv2d", GATHER,
    ]  # fmt: skip


def test_a_sum_that_ends_the_model_goes_to_all():
    made = schedule(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1), schemes=("filters", "inputs"))
    assert told(made) == ["Conv2d", "Conv2d", "partial -> full", "+ bias"]


def test_a_chain_of_inputs_never_gathers():
    made = schedule(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1), schemes=("inputs",))
    assert told(made) == [
        "full -> sliced", "Conv2d", "partial -> sliced", "+ bias",
        "Conv2d", "partial -> full", "+ bias",
    ]  # fmt: skip


def test_whole_layers_exchange_nothing():
    made = schedule(nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 1), schemes=("whole",))
    assert told(made) == ["Conv2d", "BatchNorm2d", "Conv2d"]
    assert all(step.before == step.after == FULL for step in made.steps)
    assert all(not step.cuts for step in made.steps)
    assert [s.run.scheme and s.run.scheme.name for s in made.steps] == ["whole", None, "whole"]


def test_softmax_over_channels_needs_all_of_them():
    made = schedule(nn.Conv2d(3, 7, 1), nn.Softmax(dim=1), nn.Conv2d(7, 5, 1))
    assert told(made) == ["Conv2d", GATHER, "Softmax", "Conv2d", GATHER]


@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["sizes-known", "sizes-unknown"])
def test_a_flattened_slice_where_the_plane_is_known(example):
    """A gather of what flattening gives is the same message: it waits where it can."""
    layers = [nn.Conv2d(3, 7, 3), nn.AvgPool2d(5), nn.Flatten(), nn.ReLU()]
    made = schedule(*layers, example=example)
    if example is None:
        assert told(made) == ["Conv2d", "AvgPool2d", GATHER, "Flatten", "ReLU"]
        return
    assert told(made) == ["Conv2d", "AvgPool2d", "Flatten", "ReLU", GATHER]
    flat = made.steps[2].after
    assert isinstance(flat, Sliced)
    assert flat.layout.counts == (16, 0, 12)
    assert flat.layout.slices(2) == (slice(16, 28),)


def test_a_linear_layer_behind_tells_the_plane():
    layers = [nn.Conv2d(3, 7, 3), nn.Flatten(), nn.Linear(63, 5)]
    made = schedule(*layers, schemes=("filters", "inputs"), example=None)
    assert told(made) == ["Conv2d", "Flatten", "Linear", "partial -> full", "+ bias"]
    assert made.steps[2].before.layout.counts == (36, 0, 27)


def test_features_and_channels_are_other_axes():
    example = torch.empty(2, 4, 6)
    layers = [nn.Linear(6, 7), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(7, 5)]
    made = schedule(*layers, example=example)
    assert told(made) == ["Linear", "Tanh", GATHER, "BatchNorm1d", "Linear", GATHER]
    assert made.steps[0].after.axis == 2


CUTS = {
    ("Conv2d", "filters"): {"weight": (0, (4, 0, 3)), "bias": (0, (4, 0, 3))},
    ("Conv2d", "inputs"): {"weight": (1, (2, 0, 1)), "bias": (0, (4, 0, 3))},
    ("ConvTranspose2d", "filters"): {"weight": (1, (4, 0, 3)), "bias": (0, (4, 0, 3))},
    ("ConvTranspose2d", "inputs"): {"weight": (0, (2, 0, 1)), "bias": (0, (4, 0, 3))},
}


@pytest.mark.parametrize(("kind", "scheme"), CUTS)
def test_which_axis_of_which_parameter_is_cut(kind, scheme):
    layer = getattr(nn, kind)(3, 7, 1)
    made = schedule(layer, nn.BatchNorm2d(7), schemes=(scheme,))
    steps = [step for step in made.steps if isinstance(step, CallStep)]
    cuts = {name: (cut.axis, cut.layout.counts) for name, cut in steps[0].cuts.items()}
    assert cuts == CUTS[kind, scheme]
    names = ("weight", "bias", "running_mean", "running_var")
    assert {name: cut.axis for name, cut in steps[1].cuts.items()} == dict.fromkeys(names, 0)
    assert all(cut.layout.counts == (4, 0, 3) for cut in steps[1].cuts.values())


def test_the_bias_of_a_sum_that_goes_to_all_is_whole():
    made = schedule(nn.Conv2d(3, 7, 1), schemes=("inputs",))
    (step,) = [step for step in made.steps if isinstance(step, CallStep)]
    assert set(step.cuts) == {"weight"}


@pytest.mark.parametrize("schemes", SCHEMES, ids="-".join)
@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["sizes-known", "sizes-unknown"])
def test_states_pass_from_step_to_step(schemes, example):
    """Every step takes a value that was made, in the state in which it was made."""
    made = schedule(
        nn.Conv2d(3, 7, 3),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 5, 3),
        nn.PReLU(5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(80, 11),
        nn.LogSoftmax(dim=1),
        nn.Linear(11, 4),
        schemes=schemes,
        example=example,
    )
    check_states(made)


# --- plans that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 7, 1)), r"it has no layer '1' \(Conv2d\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 6, 1)), "'1'.* 6 channels.* 5"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1), nn.Conv2d(5, 5, 1)),
            "the model has no layer '2'",
        ),
    ],
)
def test_a_plan_for_another_model(other, named):
    graph = read_graph(nn.Sequential(nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1)))
    with pytest.raises(HetmpError, match="the plan is for another model") as refused:
        schedule_model(graph, make_plan(other(), WEIGHTS))
    refused.match(named)


def test_a_plan_that_names_a_layer_twice():
    module = nn.Sequential(nn.Conv2d(3, 7, 1))
    plan = make_plan(module, WEIGHTS)
    twice = plan.model_copy(update={"layers": plan.layers * 2})
    with pytest.raises(HetmpError, match="more than once"):
        schedule_model(read_graph(module), twice)
