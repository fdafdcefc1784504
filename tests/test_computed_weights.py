"""Weights that are computed filter by filter are cut like the filters, and nothing is lost."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import hetmp
from cases.computed import CASES, Network, ScaledStdConv2d, Standardized, Tempered
from helpers.comparison import (
    adam,
    batch,
    compare_training,
    make_plan,
    pick_weights,
    seeded,
    sgd,
)
from hetmp.core.state import FULL, Sliced
from hetmp.slicing.graph import read_graph
from hetmp.slicing.scheduler import schedule_model

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

SHAPE = (3, 3, 7, 6)


def whole_tensors(model: hetmp.SlicedModel) -> set[str]:
    """The names of the parameters and buffers that every rank holds whole."""
    return {
        name for name, entry in model.hetmp.table.items() if not isinstance(entry.state, Sliced)
    }


@pytest.mark.parametrize("name", CASES)
def test_nothing_falls_back(name):
    graph = read_graph(Network(CASES[name]()), torch.empty(SHAPE))
    assert not list(graph.fallbacks())
    assert not [node.path for node in graph.mixing() if graph.is_tied(node)]


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_the_unsliced_module_and_every_rank_holds_its_share(name, number):
    module = seeded(lambda: Network(CASES[name]()))
    weights = pick_weights(number + list(CASES).index(name))
    names = list(module.state_dict())
    model, _ = compare_training(
        module, weights, SHAPE, steps=4, optimizer=(sgd, adam)[number], example=True
    )
    assert list(model.state_dict()) == names
    assert not whole_tensors(model)
    group, layer = model.hetmp.group, model.hetmp.plan.layer("layer")
    held, whole = (
        sum(p.numel() for n, p in one.named_parameters() if "pad" not in n)
        for one in (model.layer, module.layer)
    )
    assert held * layer.channels == whole * layer.counts[group.rank]


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["standardized", "batch norm with a gain", "weight norm"])
@pytest.mark.parametrize(
    "schemes",
    [
        ("inputs", "whole", "filters"),
        ("whole", "filters", "inputs"),
        ("batch",),
        ("filters", "batch", "inputs"),
    ],
)
def test_it_follows_other_schemes_and_stands_between_them(name, schemes):
    module = seeded(lambda: Network(CASES[name]()))
    plan = make_plan(module, pick_weights(3), schemes, turned=True)
    compare_training(module, plan, SHAPE, example=True)


def test_scheme_inputs_is_refused():
    module = Network(CASES["standardized"]())
    plan = make_plan(module, [2, 1], ("filters", "inputs"))
    with pytest.raises(hetmp.HetmpError, match=r"'layer' \(ComputedConv2d\) computes its weight"):
        schedule_model(read_graph(module), plan)


@pytest.mark.mpi
def test_what_is_no_filter_s_is_whole_and_its_gradient_is_summed():
    module = seeded(lambda: Network(Tempered(7, 11, 3)))
    model, _ = compare_training(module, pick_weights(1), SHAPE, steps=3, example=True)
    assert whole_tensors(model) == {"layer.factor", "layer.inputs"}


@pytest.mark.mpi
def test_a_parameter_for_each_input_channel_is_not_taken_for_one_for_each_filter():
    """As many input channels as filters."""
    module = seeded(lambda: Network(Tempered(7, 7, 3)))
    model, _ = compare_training(module, pick_weights(2), SHAPE, steps=3, example=True)
    assert whole_tensors(model) == {"layer.factor", "layer.inputs"}


class Forgetful(nn.Conv2d):
    """It has a bias and does not use it."""

    def forward(self, x):
        return F.conv2d(x, self.weight)


@pytest.mark.mpi
def test_a_parameter_that_is_not_used():
    """It has no gradient, on a rank without filters neither."""
    for number in range(3):
        module = seeded(lambda: Network(Forgetful(7, 11, 3)))
        model, _ = compare_training(module, pick_weights(3 + number), SHAPE, example=True)
        assert whole_tensors(model) == {"layer.bias"}


WHOLE = {
    "a norm of all": lambda: parametrizations.weight_norm(nn.Conv2d(7, 11, 3), dim=None),
    "a norm of inputs": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(7, 11, 2)),
    "a norm of all of old": lambda: nn.utils.weight_norm(nn.Conv2d(7, 11, 3), dim=None),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", WHOLE)
def test_a_weight_computed_from_all_filters_is_held_whole_and_its_work_divided(name):
    module = seeded(lambda: Network(WHOLE[name]()))
    model, _ = compare_training(module, pick_weights(0), SHAPE, steps=3, example=True)
    assert not list(model.hetmp.graph.fallbacks())
    own = {name for name in model.hetmp.table if name.startswith("layer.")}
    assert whole_tensors(model) == own - {"layer.bias"}


class Twice(Standardized):
    def forward(self, x):
        return super().forward(super().forward(x))


class Regularized(nn.Module):
    """The weight is read once more, by what is returned."""

    def __init__(self):
        super().__init__()
        self.conv = Standardized(3, 7, 1)
        self.last = nn.Conv2d(7, 5, 1)

    def forward(self, x):
        return self.last(self.conv(x).tanh()), self.conv.weight.square().mean()


@pytest.mark.mpi
def test_a_layer_that_runs_twice():
    module = seeded(lambda: Network(Twice(7, 7, 3)))
    model, _ = compare_training(module, pick_weights(1), SHAPE, example=True)
    assert not whole_tensors(model)


@pytest.mark.mpi
def test_a_weight_that_something_else_reads_is_whole():
    model, _ = compare_training(seeded(Regularized), pick_weights(1), SHAPE, example=True)
    assert "conv.weight" in whole_tensors(model)
    assert model.hetmp.table["conv.weight"].state == FULL


@pytest.mark.mpi
def test_training_and_evaluation_that_run_other_operations():
    def build():
        layer = ScaledStdConv2d(7, 11, 3)
        return nn.Sequential(nn.Conv2d(3, 7, 1), nn.Dropout(0.0), layer, nn.BatchNorm2d(11))

    module = seeded(build)
    model, reference = compare_training(module, pick_weights(0), SHAPE, example=True)
    x = batch(SHAPE)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=0, atol=1e-10)


@pytest.mark.mpi
@pytest.mark.parametrize("tuning", [hetmp.Tuning(regather=True), hetmp.Tuning(overlap=False)])
def test_other_ways_to_work(tuning):
    module = seeded(lambda: Network(ScaledStdConv2d(7, 11, 3)))
    compare_training(module, pick_weights(0), SHAPE, example=True, tuning=tuning)


@pytest.mark.mpi
def test_a_copy_of_the_model_computes_as_the_model():
    model = hetmp.slice_model(seeded(lambda: Network(Standardized(7, 11, 3))), pick_weights(1))
    x = batch(SHAPE)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)


class Noisy(nn.Module):
    """A parametrization that draws random numbers of no activation's shape."""

    def forward(self, weight):
        return weight + torch.randn(11, 7, 3, 3)


class Cut(nn.Module):
    """A parametrization that torch.fx cannot trace."""

    def forward(self, weight):
        return weight if weight.sum() > 0 else -weight


@pytest.mark.parametrize("kind", [Noisy, Cut])
def test_a_parametrization_that_is_more_than_a_recipe_stays_one_operation(kind):
    layer = nn.Conv2d(7, 11, 3)
    parametrize.register_parametrization(layer, "weight", kind())
    module = Network(layer)
    state = torch.get_rng_state()
    (node,) = read_graph(module).fallbacks()
    assert "'layer'" in node.place
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.mpi
def test_inside_what_is_kept_as_one():
    """There it computes its whole weight."""
    module = seeded(lambda: Network(CASES["weight norm"]()))
    module.layer = hetmp.leaf(nn.Sequential(module.layer, nn.Tanh()))
    compare_training(module, pick_weights(1), SHAPE, example=True)


class Renamed(nn.Conv2d):
    """Only made in another way."""

    def __init__(self):
        super().__init__(7, 11, 3)


@pytest.mark.mpi
def test_a_subclass_that_computes_as_its_base():
    module = seeded(lambda: Network(parametrizations.weight_norm(Renamed())))
    model, _ = compare_training(module, pick_weights(0), SHAPE, example=True)
    assert not whole_tensors(model)
