"""The memory of a step: what is counted for it, and what is chosen so that it fits. No MPI."""

import io
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from helpers.planning import BATCH, made_up_profile, read_layers
from hetmp import plan_from_weights
from hetmp.core.errors import HetmpError
from hetmp.optim import OPTIMIZERS, numbers_kept
from hetmp.planner import LinkModel, PlanOptions, Tables, make_plan, predict
from hetmp.planner.profiling.profile import Workspace
from hetmp.planner.render import render_plan
from hetmp.slicing import make_table
from hetmp.slicing.graph import read_graph
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.segments import can_be_recomputed, check_recomputed
from hetmp.slicing.step_memory import MemoryOptions

PIXELS = 25


@pytest.fixture(scope="module")
def graph():
    """Three layers with a normalisation and an activation behind each: 3, 4, 8, 16 channels."""
    layers = []
    for taken, made in ((3, 4), (4, 8), (8, 16)):
        layers += [nn.Conv2d(taken, made, 1), nn.BatchNorm2d(made), nn.ReLU()]
    return read_layers(*layers, image=(3, 5, 5))


def memory(graph, plan, options=None, profile=None):
    """What each rank is predicted to hold at most."""
    profile = profile or made_up_profile(graph, [1.0] * plan.ranks)
    schedule = schedule_model(graph, plan)
    links = LinkModel(profile).between(range(plan.ranks))
    backward = plan.backward_by_layer(regather=False)
    table = make_table(graph, schedule)
    tables = Tables(profile.devices)
    made = predict(graph, schedule, table, tables, links, BATCH, options, backward)
    return made.memory


def size(channels):
    """The bytes of a batch of values with so many channels."""
    return 4 * BATCH * channels * PIXELS


def test_a_state_of_the_optimizer_is_as_large_as_the_parameters(graph):
    plan = plan_from_weights(graph, [3, 1])
    sgd, adam = (memory(graph, plan, MemoryOptions(states)) for states in (1.0, 2.0))
    schedule = schedule_model(graph, plan)
    held = [
        sum(
            tensor.shape.numel()
            * 4
            * (tensor.state.layout.counts[rank] / tensor.state.layout.total)
            for tensor in make_table(graph, schedule).values()
            if tensor.parameter
        )
        for rank in range(2)
    ]
    assert np.allclose(adam - sgd, held)


def test_what_the_optimizers_keep():
    kept = {name: numbers_kept(name, {}) for name in OPTIMIZERS}
    assert (kept["sgd"], kept["adamw"], kept["rmsprop"], kept["lamb"]) == (0, 2, 1, 2)
    assert numbers_kept("SGD", {"momentum": 0.9}) == numbers_kept("lars", {}) == 1
    assert numbers_kept("adam", {"amsgrad": True}) == 3


def test_shared_memory_holds_what_is_gathered_once_for_all(graph):
    plan = plan_from_weights(graph, [1, 1])
    own, shared = (memory(graph, plan, MemoryOptions(packing=p)) for p in ("own", "share"))
    # The inputs of the second and the third layer, and one and a half times the larger: each rank
    # has half of that. Its own it has whole, and most is held when it packs the result's gradient.
    once = size(4) + size(8) + 1.5 * size(8)
    assert np.allclose(own - shared, size(4) + size(8) + size(16) - once / 2)


@pytest.mark.parametrize("packing", ["own", "share"])
def test_less_is_kept_where_more_is_done_again(graph, packing):
    plan, options = plan_from_weights(graph, [1, 1]), MemoryOptions(packing=packing)
    keep, regather, recompute = (
        memory(graph, plan.with_backward({"*": choice}), options)
        for choice in ("keep", "regather", "recompute")
    )
    assert (regather < keep).all() and (recompute < regather).all()


def test_one_layer_gathered_again_saves_its_input(graph):
    """Not at the very end: what is gathered last is there when most is held."""
    plan = plan_from_weights(graph, [1, 1])
    second = plan.layers[1].name
    keep, regather = memory(graph, plan), memory(graph, plan.with_backward({second: "regather"}))
    assert np.allclose(keep - regather, size(4))


def test_memory_that_is_needed_for_a_while_is_a_line_between_what_was_measured(graph):
    profile = made_up_profile(graph, [1, 1])
    spaces = tuple(
        Workspace(scheme=scheme, share=share, bytes=measured)
        for scheme, share, measured in (
            ("filters", 0.0, 1e6), ("filters", 1.0, 5e6), ("batch", 0.5, 9e6)
        )
    )  # fmt: skip
    devices = [device.model_copy(update={"workspace": spaces}) for device in profile.devices]
    more = profile.model_copy(update={"devices": devices})
    for plan, extra in (
        (plan_from_weights(graph, [3, 1]), [4e6, 2e6]),
        (plan_from_weights(graph, [1, 1], "batch"), [9e6, 9e6]),
    ):
        assert np.allclose(memory(graph, plan, None, more) - memory(graph, plan), extra)


# --- what is chosen


def made(graph, limit=None, speeds=(1, 1), **more):
    """The plan of two ranks that exchange in no time, with a limit of memory."""
    profile = made_up_profile(graph, speeds, latency=1e-7, bandwidth=1e13, **more)
    return make_plan(graph, profile, PlanOptions(memory_limit=limit, leave_out=False))


def test_with_memory_enough_everything_is_kept(graph):
    assert all(layer.backward is None for layer in made(graph).plan.layers)


def test_a_limit_is_met_by_the_savings_that_cost_least(graph):
    """Every limit down to the least that can be met is met; the less memory, the slower."""
    free = made(graph)
    everything = free.prediction.memory.max()
    seconds = [free.prediction.seconds]
    for part in (0.95, 0.9, 0.85, 0.8):
        planned = made(graph, int(part * everything))
        assert planned.prediction.memory.max() <= part * everything
        chosen = {layer.backward for layer in planned.plan.layers}
        assert chosen & {"regather", "recompute"}
        assert planned.prediction.seconds >= seconds[-1] * (1 - 1e-9)
        seconds.append(planned.prediction.seconds)
        shown = io.StringIO()
        Console(file=shown, width=140).print(render_plan(planned))
        assert "to fit in memory, the backward pass" in shown.getvalue()
        assert re.search(r"  equal split: .*, but not enough memory\n", shown.getvalue())
        assert "the fastest rank alone" in planned.too_large and not free.too_large
    with pytest.raises(HetmpError, match="the model does not fit"):
        made(graph, 1000)


def test_a_faster_rank_keeps_less_before_it_has_fewer_channels(graph):
    """Where fewer channels of the fast rank would be slower than gathering once more."""
    free = made(graph, speeds=(4, 1))
    planned = made(graph, int(0.9 * free.prediction.memory.max()), speeds=(4, 1))
    assert [layer.counts for layer in planned.plan.layers] == [
        layer.counts for layer in free.plan.layers
    ]
    assert any(layer.backward for layer in planned.plan.layers)


def test_one_rank_alone_computes_again_what_it_has_no_memory_for(graph):
    profile = made_up_profile(graph, [1])
    limit = int(0.8 * make_plan(graph, profile).prediction.memory[0])
    planned = make_plan(graph, profile, PlanOptions(memory_limit=limit))
    # Nothing is gathered on one rank, so that nothing is saved by gathering it again.
    assert {layer.backward for layer in planned.plan.layers} == {None, "recompute"}


class ChangedInEvaluation(nn.Module):
    """What the second layer takes is changed in place behind it, but not in training."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.a(x)
        z = self.b(y)
        return z if self.training else z + y.mul_(2)


def test_what_cannot_run_once_more_in_some_mode_is_not_chosen():
    graph = read_graph(ChangedInEvaluation(), torch.empty(BATCH, 3, 5, 5))
    plan = plan_from_weights(graph, [1, 1])
    schedule = schedule_model(graph, plan)
    assert can_be_recomputed(graph, schedule, plan) == ["a"]
    check_recomputed(graph, schedule, plan.with_backward({"a": "recompute"}))
    with pytest.raises(HetmpError, match="layer 'b' cannot be recomputed"):
        check_recomputed(graph, schedule, plan.with_backward({"b": "recompute"}))


def test_a_very_large_model_has_one_choice_for_all_layers(graph, monkeypatch):
    monkeypatch.setattr("hetmp.planner.splits.EFFORT", 0)
    planned = made(graph, int(0.9 * made(graph).prediction.memory.max()))
    assert {layer.backward for layer in planned.plan.layers} in ({"regather"}, {"recompute"})
