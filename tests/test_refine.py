"""Moves of channels and images that make a whole step faster."""

from dataclasses import replace

import pytest

from helpers.planning import made_up_profile, read_model
from hetmp.planner import LinkModel, Tables
from hetmp.planner.refine import refine
from hetmp.planner.splits import SharedModel, Split, Splitter
from hetmp.slicing.step_memory import MemoryOptions


def splitter_of(speeds, limit=0):
    """The search among made-up ranks of these speeds."""
    graph = read_model("paper-cifar")
    profile = made_up_profile(graph, speeds)
    tables, everyone = Tables(profile.devices), range(len(speeds))
    model = SharedModel(graph, profile.batch_size, tables)
    alone = [1 / speed for speed in speeds]
    links = LinkModel(profile).between(everyone)
    limits = [limit] * len(speeds)
    return Splitter(model, tables, links, alone, limits, MemoryOptions())


def totals(split):
    return {number: share.total for number, share in split.shares.items()}


@pytest.mark.parametrize("schemes", ["filters", "batch"])
def test_ranks_that_wait_are_given_more(schemes):
    splitter = splitter_of((1, 0.3))
    equal = Split.by_weights(splitter.model, [8.0, 8.0])
    if schemes == "batch":
        equal = replace(equal, schemes=splitter.model.by_batch)
    better = refine(splitter, equal, [1.0, 1.0])
    assert splitter.predict(better).seconds < 0.9 * splitter.predict(equal).seconds
    assert totals(better) == totals(equal)
    assert sum(better.weights) == sum(equal.weights)
    if schemes == "batch":
        assert better.weights[0] > better.weights[1]


def test_caps_and_limits_are_kept():
    splitter = splitter_of((1, 0.3))
    equal = Split.by_weights(splitter.model, [8.0, 8.0])
    assert refine(splitter, equal, [0.5, 1.0]) == equal
    needed = splitter.predict(equal).memory
    tight = splitter_of((1, 0.3), limit=int(needed.max()))
    better = refine(tight, Split.by_weights(tight.model, [8.0, 8.0]), [1.0, 1.0])
    assert tight.fits(tight.predict(better))


def test_a_rank_alone_has_nobody_to_give_to():
    splitter = splitter_of((1,))
    whole = Split.by_weights(splitter.model, [1.0])
    assert refine(splitter, whole, [1.0]) is whole
