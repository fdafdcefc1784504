"""Why each layer of a plan is cut as it is: what other schemes are predicted to take. No MPI."""

import io
import itertools
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from helpers.planning import BATCH, made_up_profile, read_layers, read_model, without_works
from hetmp import plan_from_weights
from hetmp.core.text import bytes_text, digits
from hetmp.ops import SCHEMES
from hetmp.planner import Links, PlanOptions, Tables, make_plan, predict
from hetmp.planner.parts import ROWS, part_title, parts
from hetmp.planner.reasons import reasons
from hetmp.planner.render import render_plan
from hetmp.slicing import make_table
from hetmp.slicing.graph import read_graph
from hetmp.slicing.scheduler import schedule_model

ALL_RANKS = PlanOptions(leave_out=False)

SLOW_LINKS = {"latency": 1e-6, "bandwidth": 1e7}


def predicted(graph, profile, plan):
    """What is predicted for a plan on all ranks of a profile."""
    ranks = len(profile.devices)
    schedule = schedule_model(graph, plan)
    tables, links = Tables(profile.devices), Links(profile.links, ranks, ranks)
    return predict(graph, schedule, make_table(graph, schedule), tables, links, BATCH)


def longer(seconds):
    return (
        f"{digits(1e3 * seconds, 2)} ms more" if seconds < 0.995 else f"{digits(seconds, 2)} s more"
    )


@pytest.fixture(scope="module")
def both():
    """Large images and few weights in front, the reverse behind."""
    front = [
        layer
        for taken, made in itertools.pairwise((3, 16, 16, 16))
        for layer in (nn.Conv2d(taken, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())
    ]
    behind = [nn.MaxPool2d(8), nn.Flatten(), nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048)]
    return read_layers(*front, *behind, image=(3, 16, 16))


@pytest.fixture(scope="module")
def profile(both):
    return without_works(made_up_profile(both, [1, 1], **SLOW_LINKS), "inputs")


@pytest.fixture(scope="module")
def planned(both, profile):
    """Three layers by ``batch``, two by ``filters``."""
    return make_plan(both, profile, ALL_RANKS)


@pytest.fixture(scope="module")
def why(planned):
    return {name: reason for reason in reasons(planned) for name in reason.layers}


def test_every_layer_has_a_reason_and_is_compared_with_every_other_scheme(planned, why):
    assert list(why) == [layer.name for layer in planned.plan.layers]
    for layer in planned.plan.layers:
        assert why[layer.name].scheme == layer.scheme
        text = f"{why[layer.name].text}; {why[layer.name].others}"
        named = {scheme for scheme in SCHEMES if scheme in text}
        assert named == {"filters", "batch", "whole"} - {layer.scheme}


def test_weights_to_sum_keep_a_layer_from_the_batch(both, profile, planned, why):
    """By the prediction of the plan in which that layer alone follows it."""
    *_, last = planned.plan.layers
    weights = planned.plan.layers[0].weights
    plan = planned.plan.with_layer(last.name, scheme="batch", weights=weights)
    more = predicted(both, profile, plan).seconds - planned.prediction.seconds
    weights = bytes_text(4 * 2049 * 2048)
    assert why[last.name].text == f"batch would take {longer(more)}: {weights} of weights to sum"


def test_bytes_keep_a_layer_in_the_batch(both, profile, planned, why):
    name = planned.plan.layers[2].name
    switched = predicted(
        both, profile, planned.plan.with_layer(name, scheme="filters", counts=(8, 8))
    )
    more = switched.seconds - planned.prediction.seconds
    moved = bytes_text(switched.received - planned.prediction.received)
    assert why[name].text == f"filters would take {longer(more)}: {moved} more to exchange"


def test_neighbours_switch_too_where_that_takes_less(both, profile, planned, why):
    first, second = (layer.name for layer in planned.plan.layers[:2])
    alone = planned.plan.with_layer(second, scheme="whole")
    together = alone.with_layer(first, scheme="whole")
    seconds = [predicted(both, profile, plan).seconds for plan in (alone, together)]
    assert seconds[1] < seconds[0]
    more = longer(seconds[1] - planned.prediction.seconds)
    assert why[second].text.startswith(f"whole from {first} to {second} would take {more}")


def test_counts_of_a_layer_that_begins_to_be_cut_are_balanced():
    """In a plan by images alone, the counts of its layers are of no use."""
    graph = read_layers(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.MaxPool2d(12), image=(3, 16, 16)
    )
    profile = without_works(made_up_profile(graph, [3, 1], **SLOW_LINKS), "inputs")
    planned = make_plan(graph, profile, ALL_RANKS)
    assert {layer.scheme for layer in planned.plan.layers} == {"batch"}
    switched = planned.switches().cheapest([("1",)], "filters")
    plan = planned.plan.with_layer("1", scheme="filters", counts=(12, 4))
    seconds = predicted(graph, profile, plan).seconds
    assert switched.prediction.seconds == pytest.approx(seconds, rel=1e-12)


def test_a_scheme_that_does_not_fit_is_named_last_with_what_it_needs(both, profile, planned):
    limit = int(1.1 * planned.prediction.memory.max())
    profile = made_up_profile(both, [1, 1], **SLOW_LINKS)
    profile = without_works(profile, "inputs")
    options = PlanOptions(leave_out=False, memory_limit=limit)
    *_, last = reasons(make_plan(both, profile, options))
    assert "would need" in last.text
    assert f"which may use {bytes_text(limit)}" in last.text


def test_where_nothing_was_chosen_there_are_no_reasons(both):
    lonely = made_up_profile(both, [1])
    assert reasons(make_plan(both, lonely)) == []
    plain = PlanOptions(leave_out=False, schemes=False)
    assert reasons(make_plan(both, made_up_profile(both, [1, 1]), plain)) == []


class Tied(nn.Module):
    """Two layers with one weight, and one with its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def test_a_layer_without_a_choice_says_why():
    graph = read_graph(Tied(), torch.empty(BATCH, 8))
    profile = without_works(made_up_profile(graph, [1, 1], bandwidth=1e12), "batch")
    first, last = reasons(make_plan(graph, profile, ALL_RANKS))
    assert first.layers == ("a", "b") and first.scheme == "whole"
    assert first.text == "no choice: it shares a parameter with another layer"
    assert last.layers == ("c",) and "no choice" not in last.text


def test_parts_are_of_one_scheme_in_order_and_few():
    graph = read_model("resnet50", (3, 64, 64))
    plan = plan_from_weights(graph, (1, 1), "batch:20")
    divided = parts(plan)
    names = [layer.name for layer in plan.layers]
    assert [name for part in divided for name in part] == names
    assert 4 < len(divided) <= ROWS
    for part in divided:
        assert len({plan.layer(name).scheme for name in part}) == 1
    titles = [part_title(part, names) for part in divided]
    assert titles[:2] == ["conv1", "layer1.0, 4 layers"]
    assert len(set(titles)) == len(titles)


def test_layers_in_turn_of_a_long_network_are_one_part_for_each_scheme():
    graph = read_layers(*(nn.Conv2d(4, 4, 1) for _ in range(300)), image=(4, 2, 2))
    plan = plan_from_weights(graph, (1, 1))
    layers = tuple(
        layer.model_copy(update={"scheme": ("filters", "inputs")[number % 2]})
        for number, layer in enumerate(plan.layers)
    )
    even, odd = parts(plan.model_copy(update={"layers": layers}))
    assert even == tuple(str(number) for number in range(0, 300, 2))
    assert len(odd) == 150


@pytest.mark.parametrize("width", [80, 100, 140])
def test_shown_in_a_terminal(planned, why, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_plan(planned, width=width))
    lines = console.export_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Why each layer is cut so"))
    shown = " ".join(" ".join(lines[start:]).split())
    *_, last = why.values()
    assert f"{last.scheme} {last.text}" in shown
    assert (f"; {last.others}" in shown) == (width == 140)
    rows = [line for line in lines[:start] if re.match(r"\d+ ", line)]
    assert len(rows) == len(planned.plan.layers)
    assert re.match(r"0 +50/50 % +batch +\d", rows[0])
