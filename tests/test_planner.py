"""Choosing a plan: counts, tables, links, predictions, schemes, ranks left out. No MPI."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.planning import (
    BATCH,
    device,
    formula,
    made_up_profile,
    optimizer_work,
    read_layers,
    read_model,
    without_works,
)
from hetmp import plan_from_weights
from hetmp.core.errors import HetmpError
from hetmp.planner import Links, PlanOptions, Tables, make_plan, predict, summary
from hetmp.planner.balance import balanced
from hetmp.planner.cluster_file import links_of
from hetmp.planner.group_times import group_times, group_works
from hetmp.planner.profiling import TURN, LinkTimes, WorkTimes
from hetmp.planner.render import render_plan, render_profile
from hetmp.planner.splits import WORTH
from hetmp.planner.tables import SAVED, curve, grain_of
from hetmp.slicing import make_table
from hetmp.slicing.channel_groups import channel_groups
from hetmp.slicing.graph import fingerprint
from hetmp.slicing.plan import Plan
from hetmp.slicing.schedule import CallStep, ExchangeStep
from hetmp.slicing.scheduler import schedule_model

# --- counts


@st.composite
def tables_of_times(draw, monotone: bool):
    """(ranks, units + 1) seconds."""
    ranks, units = draw(st.integers(2, 4)), draw(st.integers(0, 8))
    rows = st.lists(st.integers(0, 20), min_size=units + 1, max_size=units + 1)
    times = np.array([draw(rows) for _ in range(ranks)], dtype=float)
    return np.cumsum(times, axis=1) if monotone else times


def vectors(ranks: int, units: int):
    """All ways to share units out."""
    return (v for v in itertools.product(range(units + 1), repeat=ranks) if sum(v) == units)


def slowest(times: np.ndarray, counts) -> float:
    return max(times[rank, count] for rank, count in enumerate(counts))


@given(tables_of_times(monotone=True))
@settings(max_examples=60)
def test_counts_take_the_least_time_of_all(times):
    ranks, units = times.shape[0], times.shape[1] - 1
    counts = balanced(times)
    assert sum(counts) == units and min(counts) >= 0
    assert slowest(times, counts) == min(slowest(times, v) for v in vectors(ranks, units))


@given(tables_of_times(monotone=True), st.data())
@settings(max_examples=60)
def test_counts_keep_below_caps_and_are_the_best_that_do(times, data):
    ranks, units = times.shape[0], times.shape[1] - 1
    caps = data.draw(st.lists(st.integers(0, units), min_size=ranks, max_size=ranks))
    if sum(caps) < units:
        with pytest.raises(HetmpError, match=rf"caps allow {sum(caps)} of {units} channels"):
            balanced(times, caps)
        return
    counts = balanced(times, caps)
    assert sum(counts) == units
    assert all(count <= cap for count, cap in zip(counts, caps, strict=True))
    allowed = [v for v in vectors(ranks, units) if all(np.array(v) <= caps)]
    assert slowest(times, counts) == min(slowest(times, v) for v in allowed)


@given(tables_of_times(monotone=False))
@settings(max_examples=60)
def test_counts_add_up_for_tables_that_fall(times):
    counts = balanced(times)
    assert sum(counts) == times.shape[1] - 1 and min(counts) >= 0


def test_a_rank_may_have_nothing():
    times = np.outer([1.0, 1.0, 100.0], np.arange(9))
    assert balanced(times) == (4, 4, 0)


def test_a_rank_takes_the_larger_count_where_its_table_falls():
    """Two channels are slower there than four: nothing is gained by fewer."""
    times = np.array([[0, 1, 9, 9, 2], [0, 1, 9, 9, 9]], dtype=float)
    assert balanced(times) == (4, 0)


# --- curves


def times_of(counts, forward, *, kind="filters", total=None, **columns) -> WorkTimes:
    nothing = (0.0,) * len(counts)
    found = {"backward": nothing, "parameters": nothing, "saved": nothing} | columns
    return WorkTimes(
        work="w",
        kind=kind,
        total=total or counts[-1],
        counts=tuple(counts),
        forward=tuple(forward),
        **found,
    )


@st.composite
def measurements(draw, monotone: bool):
    total = draw(st.integers(1, 70))
    counts = sorted(draw(st.sets(st.integers(0, total), min_size=1, max_size=6)))
    micros = st.lists(st.integers(0, 10**7), min_size=len(counts), max_size=len(counts))
    columns = [[1e-6 * number for number in draw(micros)] for _ in range(4)]
    if monotone:
        columns = [sorted(column) for column in columns]
    forward, backward, parameters, saved = columns
    return times_of(
        counts,
        forward,
        total=total,
        backward=tuple(backward),
        parameters=tuple(parameters),
        saved=tuple(saved),
    )


def columns_of(times: WorkTimes) -> np.ndarray:
    return np.array([times.forward, times.backward, times.parameters, times.saved]).T


@given(measurements(monotone=False), st.sampled_from([1, 8, 16]))
@settings(max_examples=60)
def test_a_curve_passes_through_what_was_measured_and_never_falls_below_0(times, grain):
    found = curve(times, times.total, grain)
    assert found.shape == (times.total + 1, 4)
    assert np.isfinite(found).all() and (found >= 0).all()
    if times.counts[0] == 0:
        assert (found[0] == columns_of(times)[0]).all()
    smooth = curve(times, times.total, 1)
    assert np.allclose(smooth[list(times.counts)], columns_of(times), rtol=1e-9, atol=1e-12)


@given(measurements(monotone=True))
@settings(max_examples=60)
def test_a_curve_rises_where_measurements_rise(times):
    found = curve(times, times.total)
    assert (np.diff(found[1:], axis=0) >= -1e-9).all()


def test_filters_are_computed_in_blocks():
    """17 filters of 16 at a time cost the forward pass what 32 do; the input's gradient not."""
    counts = (0, 16, 32, 64)
    times = times_of(counts, (0.5, 1, 2, 4), backward=(0, 1, 2, 4), parameters=(0, 1, 2, 4))
    found = curve(times, 64, grain=16)
    assert found[17, 0] == found[32, 0] == pytest.approx(2)
    assert found[16, 0] == pytest.approx(1)
    assert found[33, 2] == found[48, 2] == pytest.approx(3)
    assert found[17, 1] == pytest.approx(17 / 16)
    assert found[0, 0] == 0.5
    channelwise = curve(times.model_copy(update={"kind": "channelwise"}), 64, grain=16)
    assert channelwise[17, 0] == pytest.approx(17 / 16)


def test_work_that_is_never_cut_takes_its_time_at_every_count():
    found = curve(times_of((1,), (3.0,)), 1)
    assert found[1, 0] == 3.0


@pytest.mark.parametrize("grain", [1, 8, 16])
def test_the_width_of_a_staircase_is_told_from_measurements(grain):
    counts = (0, 16, 33, 64, 73, 128, 256)
    forward = [1e-3 * -(-count // grain) * grain for count in counts]
    works = [times_of(counts, forward, parameters=tuple(forward)) for _ in range(3)]
    assert grain_of(device(works)) == grain


def test_without_measurements_off_the_grid_there_is_no_staircase():
    works = [times_of((0, 16, 32, 64), (0, 1, 2, 4))]
    assert grain_of(device(works)) == 1
    assert grain_of(device([])) == 1


# --- tables and links


def test_an_unknown_work_is_refused_by_the_devices_name():
    tables = Tables([device([times_of((0, 4), (0, 1))])])
    assert tables.at("w", "filters", [4])[0, 0] == 1
    with pytest.raises(HetmpError, match=r"abacus on here has no times for other \(inputs\)"):
        tables.at("other", "inputs", None)


ROWS = [(size, largest) for size in (1000, 50_000, 2_000_000) for largest in (0.25, 0.6, 1.0)]


def link(name: str, terms, rows=ROWS) -> LinkTimes:
    return LinkTimes(
        collective=name,
        bytes=tuple(size for size, _ in rows),
        largest=tuple(largest for _, largest in rows),
        seconds=tuple(terms[0] + size * (terms[1] + terms[2] * largest) for size, largest in rows),
    )


@pytest.mark.parametrize(
    "terms", [(1e-5, 2e-9, 3e-9), (1e-5, 0.0, 3e-9), (0.0, 2e-9, 0.0), (4e-4, 0.0, 0.0)]
)
def test_links_find_the_formula_that_made_the_figures(terms):
    links = Links([link("Allgatherv", terms)], 4, 4)
    for size, largest in ((10, 0.3), (123_456, 0.9), (10**8, 0.25)):
        told = terms[0] + size * (terms[1] + terms[2] * largest)
        assert links.seconds("Allgatherv", size, largest) == pytest.approx(told, rel=1e-6)
    assert links.seconds("-", 1000, 1.0) == 0.0
    with pytest.raises(HetmpError, match="no times of Allreduce"):
        links.seconds("Allreduce", 1000, 1.0)


def test_links_of_other_numbers_of_ranks():
    """The latency goes with the logarithm of the ranks, the rest with what each must receive."""
    links = Links([link("Allgatherv", (1e-5, 2e-9, 3e-9))], 4, 16)
    factor = (15 / 16) / (3 / 4)
    told = 2 * 1e-5 + factor * 1e6 * (2e-9 + 3e-9 * 0.5)
    assert links.seconds("Allgatherv", 10**6, 0.5) == pytest.approx(told, rel=1e-6)
    alone = Links([], 1, 1)
    assert alone.seconds("Allgatherv", 10**6, 0.5) == 0.0
    with pytest.raises(HetmpError, match="no times of exchanges"):
        Links([], 1, 2)


@pytest.mark.parametrize("ranks", [2, 3, 8, 200])
def test_links_of_known_latency_and_bandwidth(ranks):
    links = Links(links_of(1e-5, 1e9, ranks), ranks, ranks)
    part, steps = (ranks - 1) / ranks, int(np.ceil(np.log2(ranks)))
    for name, starts, moved in (
        ("Allgatherv", steps, part),
        ("Reduce_scatter", steps, part),
        ("Allreduce", 2 * steps, 2 * part),
        ("Alltoallv", ranks - 1, part),
        (TURN, ranks - 1, part / ranks),
    ):
        told = starts * 1e-5 + moved * 3e6 / 1e9
        assert links.seconds(name, 3e6, 1 / ranks) == pytest.approx(told, rel=1e-6)
    assert links_of(1e-5, 1e9, 1) == ()
    again = Links(links.as_measured((10, 10**6)), ranks, ranks)
    assert again.seconds("Allgatherv", 3e6, 0.5) == pytest.approx(
        links.seconds("Allgatherv", 3e6, 0.5), rel=1e-6
    )


# --- predictions

WORKS = {"first": (0.010, 0.020, 0.005), "second": (0.030, 0.040, 0.007)}
"""Forward, backward and parameters of two layers, for all of their filters."""

REST, HANDLING, UPDATE = 0.003, 0.0002, 0.004

TERMS = {"Allgatherv": (1e-4, 1e-9, 2e-9), "Reduce_scatter": (2e-4, 3e-9, 1e-9)}


def chain(speeds):
    """Two convolutions, 4 and 8 filters, on devices whose times go with the share."""
    graph = read_layers(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), image=(3, 5, 5))
    signatures = [node.call.signature for node in graph.training.nodes]
    devices = []
    for speed in speeds:
        works = [optimizer_work(UPDATE)]
        for signature, total, times in zip(signatures, (4, 8), WORKS.values(), strict=True):
            columns = [tuple(t * c / total / speed for c in range(total + 1)) for t in times]
            works.append(
                WorkTimes(
                    work=signature,
                    kind="filters",
                    total=total,
                    counts=tuple(range(total + 1)),
                    forward=columns[0],
                    backward=columns[1],
                    parameters=columns[2],
                    saved=tuple(1000.0 * c for c in range(total + 1)),
                )
            )
        devices.append(device(works, rest=REST, handling=HANDLING))
    return graph, Tables(devices)


def predicted(graph, plan, tables, links):
    schedule = schedule_model(graph, plan)
    return predict(graph, schedule, make_table(graph, schedule), tables, links, BATCH)


def test_one_rank_takes_the_sum_of_its_tables():
    graph, tables = chain([1.0])
    made = predicted(graph, plan_from_weights(graph, [1]), tables, Links([], 1, 1))
    assert made.seconds == pytest.approx(sum(map(sum, WORKS.values())) + REST + UPDATE, rel=1e-12)
    assert made.received == 0
    assert all(layer.exchange == 0 and layer.idle == 0 for layer in made.layers.values())


def test_two_ranks_by_hand():
    """Rank 1 is half as fast and has a quarter of the filters."""
    graph, tables = chain([1.0, 0.5])
    links = Links([link(name, terms) for name, terms in TERMS.items()], 2, 2)
    made = predicted(graph, plan_from_weights(graph, [3, 1]), tables, links)
    share = np.array([3 / 4, 1 / 4 / 0.5])
    f1, b1, p1 = (t * share for t in WORKS["first"])
    f2, b2, p2 = (t * share for t in WORKS["second"])
    sizes = [4 * BATCH * channels * 25 for channels in (4, 8)]
    gather, scatter = (
        [t[0] + size * (t[1] + t[2] * 0.75) for size in sizes] for t in TERMS.values()
    )
    clock, idle = f1 + HANDLING, []
    idle.append(clock.max() - clock)
    clock = clock.max() + gather[0] + f2 + HANDLING
    idle.append(clock.max() - clock)
    clock = clock.max() + gather[1] + REST
    # The gradient of the result is summed where its filters are.
    clock = clock.max() + scatter[1] + b2
    # Who is there first computes the parameters' gradients while it waits.
    arrived = clock.max()
    clock = np.maximum(clock + p2, arrived)
    idle.append(clock - (arrived - (b2.max() - b2) + p2))
    clock = clock + scatter[0] + b1 + p1 + UPDATE
    assert made.seconds == pytest.approx(clock.max(), rel=1e-9)
    first, second = made.layers["0"], made.layers["1"]
    assert np.allclose(first.compute, f1 + b1 + p1, rtol=1e-9, atol=2 * HANDLING)
    # The exchange in front of a layer is the layer's; the one that ends the model, the last's.
    assert first.exchange == 0
    assert second.exchange == pytest.approx(sum(gather) + sum(scatter), rel=1e-6)
    assert np.allclose(second.idle, sum(idle), rtol=1e-6)
    assert second.idle[1] > 0
    held = np.array([(3 + 6) * 4 + (3 * 3 + 4 * 6) * 4, (1 + 2) * 4 + (3 * 1 + 4 * 2) * 4])
    # Most is held when the gradient of the result is summed: it, the packed one, and its share.
    result = sizes[1] * np.array([2 + 3 / 4, 2 + 1 / 4])
    assert np.allclose(made.memory, 2 * held + [9000, 3000] + result)
    # Forward each rank receives what it has not, backward a summand of its share.
    assert made.received == pytest.approx(sum(sizes) * (1 + 1))


def test_a_profile_of_another_model_is_refused():
    graph = read_model("digits")
    other = made_up_profile(read_model("digits", (1, 12, 12)), [1, 1])
    with pytest.raises(HetmpError, match="it is of another model; run hetmp profile for this one"):
        make_plan(graph, other)


def test_a_profile_of_many_ranks_without_links_is_refused():
    graph = read_model("digits")
    lonely = made_up_profile(graph, [1, 1]).model_copy(update={"links": ()})
    with pytest.raises(HetmpError, match="no times of exchanges"):
        make_plan(graph, lonely, PlanOptions(leave_out=False))


# --- plans


@pytest.fixture(scope="module")
def paper():
    """Four layers that are worth sharing."""
    return read_model("paper-cifar")


FAST_LINKS = {"latency": 1e-7, "bandwidth": 1e12}


def test_counts_follow_the_speeds(paper):
    planned = make_plan(paper, made_up_profile(paper, [3, 1], **FAST_LINKS))
    for layer in planned.plan.layers[:-1]:
        assert abs(layer.counts[0] - 3 / 4 * layer.channels) <= 1
    assert planned.left_out == {} and planned.plan.left_out == ()


def test_a_hopeless_rank_is_left_out(paper):
    slow = {"latency": 1e-3, "bandwidth": 1e10}
    planned = make_plan(paper, made_up_profile(paper, [1, 1, 0.02], **slow))
    assert planned.plan.left_out == (2,)
    assert planned.plan.ranks == 3
    assert all(layer.counts[2] == 0 for layer in planned.plan.layers)
    assert list(planned.left_out) == [2] and "alone it would take" in planned.left_out[2]
    assert len(planned.prediction.memory) == 2
    kept = make_plan(
        paper, made_up_profile(paper, [1, 1, 0.02], **slow), PlanOptions(leave_out=False)
    )
    assert kept.plan.left_out == ()
    first = make_plan(paper, made_up_profile(paper, [0.02, 1, 1], **slow))
    assert first.plan.left_out == (0,)


def test_equal_ranks_all_take_part(paper):
    planned = make_plan(paper, made_up_profile(paper, [1, 1, 1], **FAST_LINKS))
    assert planned.plan.left_out == ()


def test_links_that_take_longer_than_the_work_leave_one_rank(paper):
    planned = make_plan(paper, made_up_profile(paper, [1, 2, 1], latency=100.0))
    assert planned.plan.members == (1,)
    assert planned.prediction.seconds == pytest.approx(
        planned.alternatives["the fastest rank alone"]
    )


SPEEDS = st.lists(st.floats(0.05, 2.0), min_size=2, max_size=4)


@given(
    SPEEDS,
    st.sampled_from([1e-7, 1e-5, 1e-3]),
    st.sampled_from([1e8, 1e10]),
)
@settings(max_examples=12)
def test_a_plan_is_predicted_to_be_no_slower_than_simple_splits(speeds, latency, bandwidth):
    graph = read_model("digits")
    profile = made_up_profile(graph, speeds, latency=latency, bandwidth=bandwidth)
    planned = make_plan(graph, profile)
    # A rank more that promises less than WORTH is not taken, nor one more after that.
    least = min(planned.alternatives[name] for name in planned.alternatives if "data" not in name)
    worth_it = (1 - WORTH) ** (len(speeds) - 1)
    assert planned.prediction.seconds <= least / worth_it * (1 + 1e-9)
    assert planned.plan.predicted_seconds == planned.prediction.seconds


@pytest.mark.parametrize("speeds", [(1, 1), (1, 0.3), (2, 1, 0.25), (1, 0.7, 0.5, 0.1)])
def test_with_all_ranks_it_is_no_slower_either(paper, speeds):
    profile = made_up_profile(paper, speeds)
    planned = make_plan(paper, profile, PlanOptions(leave_out=False))
    for name in ("equal split", "split in proportion to speed"):
        assert planned.prediction.seconds <= planned.alternatives[name] * (1 + 1e-9)


def test_the_prediction_is_that_of_the_plan(paper):
    profile = made_up_profile(paper, [2, 1, 0.5])
    planned = make_plan(paper, profile)
    members = planned.plan.members
    tables = Tables(profile.devices).of(members)
    links = Links(profile.links, 3, len(members))
    again = predicted(paper, planned.plan.of_members(), tables, links)
    assert again.seconds == planned.prediction.seconds


def test_a_memory_limit_is_kept(paper):
    profile = made_up_profile(paper, [4, 1, 1], **FAST_LINKS)
    free = make_plan(paper, profile)
    needed = float(free.prediction.memory.max())
    limit = int(0.7 * needed)
    planned = make_plan(paper, profile, PlanOptions(memory_limit=limit))
    assert planned.prediction.memory.max() <= limit
    assert planned.prediction.seconds > free.prediction.seconds
    assert planned.limits == (limit,) * 3
    with pytest.raises(HetmpError, match=r"does not fit: rank \d may use 1000 bytes but needs"):
        make_plan(paper, profile, PlanOptions(memory_limit=1000))


def test_the_memory_of_each_device_is_its_limit(paper):
    everything = make_plan(paper, made_up_profile(paper, [1])).prediction.memory[0]
    memory = [int(0.35 * everything), int(2 * everything)]
    profile = made_up_profile(paper, [4, 1], memory=memory, **FAST_LINKS)
    planned = make_plan(paper, profile, PlanOptions(leave_out=False))
    assert (planned.prediction.memory <= memory).all()


def test_shares_can_follow_memory_instead_of_speed(paper):
    memory = [10**12, 3 * 10**12]
    profile = made_up_profile(paper, [100, 1], memory=memory, **FAST_LINKS)
    options = PlanOptions(objective="memory", leave_out=False)
    planned = make_plan(paper, profile, options)
    for layer in planned.plan.layers:
        assert abs(layer.counts[1] - 3 / 4 * layer.channels) <= 1


# --- schemes


def schemes(planned) -> set[str]:
    return {layer.scheme for layer in planned.plan.layers}


SLOW_LINKS = {"latency": 1e-6, "bandwidth": 1e7}


def deep():
    """Convolutions with nothing but exchanges between them."""
    layers = [nn.Conv2d(3, 16, 3, padding=1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    return read_layers(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), image=(3, 16, 16)
    )


def test_slow_links_are_avoided_by_other_schemes():
    graph = deep()
    profile = without_works(made_up_profile(graph, [1, 1], **SLOW_LINKS), "batch")
    keep = {"leave_out": False}
    planned = make_plan(graph, profile, PlanOptions(**keep))
    plain = make_plan(graph, profile, PlanOptions(schemes=False, **keep))
    assert schemes(plain) == {"filters"}
    assert schemes(planned) & {"inputs", "whole"}
    assert planned.prediction.seconds < (1 - WORTH) * plain.prediction.seconds
    assert planned.prediction.received < plain.prediction.received


def test_where_links_cost_nothing_all_layers_follow_filters():
    graph = deep()
    profile = made_up_profile(graph, [1, 1], latency=1e-12, bandwidth=1e18)
    assert schemes(make_plan(graph, profile)) == {"filters"}


def test_a_scheme_that_was_not_measured_is_not_planned():
    graph = deep()
    profile = made_up_profile(graph, [1, 1], **SLOW_LINKS)
    for kind in ("inputs", "batch"):
        profile = without_works(profile, kind)
        assert kind not in schemes(make_plan(graph, profile, PlanOptions(leave_out=False)))


def test_an_expensive_scheme_is_not_planned():
    graph = deep()
    profile = made_up_profile(graph, [1, 1], costs=formula(inputs=1000.0), **SLOW_LINKS)
    assert "inputs" not in schemes(make_plan(graph, profile, PlanOptions(leave_out=False)))


# --- shipped models, and what is told of plans

SHIPPED = {
    "resnet18": (3, 64, 64),
    "densenet121": (3, 64, 64),
    "unet": (1, 64, 64),
    "mobilenet_v2": (3, 64, 64),
}


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("resnet18", 1e7),
        pytest.param("densenet121", 1e7, marks=pytest.mark.thorough),
        ("unet", 1e7),
        ("mobilenet_v2", 1e7),
        ("resnet18", 1e11),
        ("unet", 1e11),
    ],
)
def test_a_plan_of_a_shipped_model_can_be_run(name, bandwidth):
    graph = read_model(name, SHIPPED[name])
    profile = made_up_profile(graph, [2, 1, 0.3], latency=1e-6, bandwidth=bandwidth)
    planned = make_plan(graph, profile, PlanOptions(leave_out=False))
    schedule = schedule_model(graph, planned.plan)
    assert schedule.ranks == 3
    for layer in planned.plan.layers:
        assert sum(layer.counts) == layer.channels
    if bandwidth > 1e10:
        plain = schedule_model(graph, plan_from_weights(graph, [2, 1, 0.3]))
        made, usual = (
            sum(isinstance(step, ExchangeStep) for step in s.training.steps)
            for s in (schedule, plain)
        )
        assert made <= usual  # channels that are tied are cut alike


def test_the_work_of_channel_groups_is_all_the_work():
    """What groups are charged with, all their channels together, is what one rank computes."""
    for name in ("resnet18", "densenet121"):
        graph = read_model(name, SHIPPED[name])
        tables = Tables(made_up_profile(graph, [1]).devices)
        found = channel_groups(graph)
        schedule = schedule_model(graph, plan_from_weights(graph, [1, 1]))
        works = group_works(found, schedule, BATCH)
        charged = sum(
            group_times(tables, works[group.number], group.units)[0, -1] for group in found.groups
        )
        spent = 0.0
        for step in schedule.training.steps:
            if isinstance(step, CallStep):
                key = step.node.call.signature, "filters" if step.run.scheme else "channelwise"
                if tables.total(*key) > 1:
                    spent += tables.at(*key, None)[0, :SAVED].sum()
        assert charged == pytest.approx(spent, rel=1e-9)


def test_json_there_and_back(paper, tmp_path):
    planned = make_plan(paper, made_up_profile(paper, [1, 1, 0.01], latency=1e-3))
    planned.plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == planned.plan
    assert loaded.devices == ("abacus 1", "abacus 1", "abacus 0.01")
    assert loaded.fingerprint == fingerprint(paper) != fingerprint(read_model("digits"))
    assert loaded.predicted_alternatives == planned.alternatives
    assert {"the fastest rank alone", "equal split", "filters everywhere"} <= set(
        loaded.predicted_alternatives
    )
    told = json.loads(summary(planned))
    assert told["predicted_seconds"] == planned.prediction.seconds
    assert list(told["left_out"]) == ["2"] and list(told["memory"]) == ["0", "1"]
    for layer, predicted in zip(planned.prediction.layers.values(), loaded.predicted, strict=True):
        assert layer.name == predicted.name and layer.exchange == predicted.exchange
        assert layer.compute.tolist() == list(predicted.compute)
        assert layer.idle.tolist() == list(predicted.idle)


def test_plans_and_profiles_in_a_terminal(paper):
    from rich.console import Console

    profile = made_up_profile(paper, [1, 1, 0.01], latency=1e-3)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(render_profile(profile))
        console.print(render_plan(make_plan(paper, profile)))
    text = captured.get()
    for word in ("abacus 0.01", "Allgatherv", "rank 2 is left out", "equal split", "left out"):
        assert word in text


def test_hundreds_of_layers_on_hundreds_of_ranks():
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(119):
        layers += [nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    graph = read_layers(*layers, image=(3, 16, 16))
    profile = made_up_profile(graph, [1.0] * 100 + [0.5] * 100 + [0.1] * 56, **FAST_LINKS)
    planned = make_plan(graph, profile)
    assert planned.plan.ranks == 256
    assert len(planned.plan.layers) == 120
    schedule_model(graph, planned.plan)
    assert torch.tensor([layer.counts for layer in planned.plan.layers]).sum() == 120 * 32
