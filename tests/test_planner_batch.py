"""Plans in which layers share the images of a batch: predicted, chosen, balanced. No MPI."""

import io
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from helpers.planning import BATCH, made_up_profile, read_layers, read_model, without_works
from hetmp import plan_from_weights
from hetmp.planner import Links, PlanOptions, Tables, make_plan, predict
from hetmp.planner.planner import BATCH_EVERYWHERE
from hetmp.planner.render import render_plan
from hetmp.planner.splits import WORTH
from hetmp.slicing import make_table
from hetmp.slicing.scheduler import schedule_model

ALL_RANKS = PlanOptions(leave_out=False)


def predicted(graph, profile, plan):
    """What is predicted for a plan on all ranks of a profile."""
    ranks = len(profile.devices)
    schedule = schedule_model(graph, plan)
    tables, links = Tables(profile.devices), Links(profile.links, ranks, ranks)
    return predict(graph, schedule, make_table(graph, schedule), tables, links, BATCH)


@pytest.mark.parametrize("hidden", [0.0, 0.4, 1.0])
def test_a_part_of_the_sums_of_gradients_is_hidden_by_the_backward_pass(hidden):
    """Of three layers of large weights by batch: a bundle begins when its gradients are there, and
    the next waits for it; what is not hidden is waited for at the end."""
    graph = read_layers(*(nn.Conv2d(1024, 1024, 1) for _ in range(3)), image=(1024, 1, 1))
    profile = made_up_profile(graph, [1, 1], latency=1e-5, bandwidth=1e9)
    own = tuple(
        link.model_copy(update={"hidden": hidden * (link.collective == "Allreduce")})
        for link in profile.links
    )
    plan = plan_from_weights(graph, (1, 1), "batch")
    schedule = schedule_model(graph, plan)
    table, tables, links = make_table(graph, schedule), Tables(profile.devices), Links(own, 2, 2)
    made = predict(graph, schedule, table, tables, links, BATCH)
    weights = 4 * (1024 * 1024 + 1024)  # of a layer: a bundle each
    work = 1e-9 * BATCH * 1024 * 1024 / 2
    gather, scatter = (
        links.seconds(name, 4 * BATCH * 1024, 0.5) for name in ("Allgatherv", "Reduce_scatter")
    )
    ready, each = 3 * work + gather + scatter, links.seconds("Allreduce", weights, 0.0)
    ends = 0.0
    for layer in range(3):
        ends = max(ends, ready + 2 * work * (layer + 1)) + hidden * each
    assert made.seconds == pytest.approx(max(ends, ready + 6 * work) + 3 * (1 - hidden) * each)


def test_two_ranks_by_hand():
    """Rank 1 is half as fast, and has 2 of 8 images, then 2 of 8 filters."""
    graph = read_layers(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), image=(3, 5, 5))
    profile = made_up_profile(graph, [1, 0.5], latency=1e-5, bandwidth=1e8)
    made = predicted(graph, profile, plan_from_weights(graph, (3, 1), "batch:1"))
    links = Links(profile.links, 2, 2)
    share = np.array([6 / 8, 2 / 8 / 0.5])
    first, second = (1e-9 * BATCH * taken * out * 25 * share for taken, out in ((3, 4), (4, 8)))
    sizes = [4 * BATCH * channels * 25 for channels in (4, 8)]
    gather, scatter = (
        [links.seconds(name, size, 0.75) for size in sizes]
        for name in ("Allgatherv", "Reduce_scatter")
    )
    clock = first.max() + gather[0] + second.max() + gather[1]
    # The gradient of the result is summed where its filters are; then that of the images, while
    # the parameters' gradients are computed; at last the gradients of the first layer are summed.
    arrived = clock + scatter[1] + second.max()
    ready = np.maximum(clock + scatter[1] + 2 * second, arrived) + scatter[0]
    summed = 4 * (3 * 4 + 4)
    last = (ready + 2 * first).max() + links.seconds("Allreduce", summed, 0)
    assert made.seconds == pytest.approx(last, rel=1e-9)
    # Forward a rank receives what it has not, backward a summand of its share; and half the sum
    # twice.
    assert made.received == pytest.approx(sum(sizes) * 2 + 2 * summed)
    held = 4 * np.array([16 + 5 * 6, 16 + 5 * 2])
    saved = 4 * BATCH * 25 * np.array([(4 + 8) * 6 / 8, (4 + 8) * 2 / 8])
    # Most is held when the gradient of the result is summed: it, the packed one, and its share.
    result = 4 * BATCH * 8 * 25 * np.array([2 + 6 / 8, 2 + 2 / 8])
    assert np.allclose(made.memory, 2 * held + saved + result)


def convolutions(*channels: int) -> list[nn.Module]:
    return [
        layer
        for taken, made in itertools.pairwise(channels)
        for layer in (nn.Conv2d(taken, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())
    ]


@pytest.fixture(scope="module")
def both():
    """Large images and few weights in front, the reverse behind."""
    behind = [nn.MaxPool2d(8), nn.Flatten(), nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048)]
    return read_layers(*convolutions(3, 16, 16, 16), *behind, image=(3, 16, 16))


SLOW_LINKS = {"latency": 1e-6, "bandwidth": 1e7}


def test_each_layer_is_cut_along_the_axis_that_pays(both):
    planned = make_plan(both, made_up_profile(both, [1, 1], **SLOW_LINKS), ALL_RANKS)
    chosen = [layer.scheme for layer in planned.plan.layers]
    assert chosen[:3] == ["batch"] * 3
    assert "batch" not in chosen[3:]
    plain = make_plan(
        both,
        made_up_profile(both, [1, 1], **SLOW_LINKS),
        PlanOptions(leave_out=False, schemes=False),
    )
    seconds = planned.prediction.seconds
    assert seconds < (1 - WORTH) * plain.prediction.seconds
    assert seconds < (1 - WORTH) * planned.alternatives[BATCH_EVERYWHERE]
    assert planned.prediction.received < plain.prediction.received


def test_images_follow_the_speeds(both):
    planned = make_plan(both, made_up_profile(both, [3, 1], **SLOW_LINKS), ALL_RANKS)
    weights = {layer.weights for layer in planned.plan.layers if layer.scheme == "batch"}
    assert weights == {(6.0, 2.0)}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_plan(planned))
    text = console.export_text()
    assert re.search(r"\n0 +75/25 % +batch ", text)
    assert f"  {BATCH_EVERYWHERE}: " in text


def test_a_rank_that_channels_would_leave_out_may_share_images():
    """Where an exchange takes long however little it moves, a few sums are still worth it."""
    graph = read_model("paper-cifar")
    profile = made_up_profile(graph, [1, 1], latency=0.2, bandwidth=1e12)
    plain = make_plan(graph, profile, PlanOptions(schemes=False))
    assert len(plain.plan.members) == 1
    planned = make_plan(graph, profile)
    assert planned.plan.members == (0, 1)
    assert {layer.scheme for layer in planned.plan.layers} == {"batch"}
    assert planned.prediction.seconds < (1 - WORTH) * plain.prediction.seconds


def test_a_profile_without_times_of_images_gives_no_layer_by_batch(both):
    profile = without_works(made_up_profile(both, [1, 1], **SLOW_LINKS), "batch")
    planned = make_plan(both, profile, ALL_RANKS)
    assert "batch" not in {layer.scheme for layer in planned.plan.layers}
    assert BATCH_EVERYWHERE not in planned.alternatives
    assert "weighted data parallelism" in planned.alternatives


def test_whole_weights_must_fit_in_memory(both):
    profile = made_up_profile(both, [1, 1], latency=1e-6, bandwidth=1e9)
    everywhere = predicted(both, profile, plan_from_weights(both, (1, 1), "batch"))
    limit = int(0.7 * everywhere.memory.max())
    planned = make_plan(both, profile, PlanOptions(leave_out=False, memory_limit=limit))
    assert planned.prediction.memory.max() <= limit


SPEEDS = st.lists(st.floats(0.1, 2.0), min_size=2, max_size=4)


@given(SPEEDS, st.sampled_from([1e-6, 1e-4]), st.sampled_from([1e7, 1e8, 1e10]))
@settings(max_examples=8)
def test_a_plan_is_predicted_to_be_no_slower_than_one_axis_everywhere(speeds, latency, bandwidth):
    graph = read_model("digits")
    profile = made_up_profile(graph, speeds, latency=latency, bandwidth=bandwidth)
    planned = make_plan(graph, profile, ALL_RANKS)
    filters = make_plan(graph, profile, PlanOptions(leave_out=False, schemes=False))
    least = min(planned.alternatives[BATCH_EVERYWHERE], filters.prediction.seconds)
    assert planned.prediction.seconds <= least / (1 - WORTH) * (1 + 1e-9)
    again = predicted(graph, profile, planned.plan)
    assert again.seconds == pytest.approx(planned.prediction.seconds, rel=1e-12)
