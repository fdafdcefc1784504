"""The bytes of a training step: the formulas beside what the exchanges count, to the byte."""

from collections.abc import Iterator

import pytest
from torch import nn

import hetmp
from helpers.comparison import batch, rank_loss, seeded, world_size
from hetmp.exchange import BackwardSum, Exchange
from hetmp.slicing.step_bytes import step_bytes

WEIGHTS = (3, 1, 2, 1, 0)


def network(norms: bool) -> nn.Sequential:
    """Convolutions with and without batch norm, a depthwise one, and a linear layer."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if norms else []

    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), *norm(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6), *norm(6), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4),
    )  # fmt: skip


def counters(model: hetmp.SlicedModel) -> Iterator[int]:
    for part in model.modules():
        if isinstance(part, Exchange):
            yield part.forward_counter.bytes
        if isinstance(part, Exchange | BackwardSum):
            yield part.backward_counter.bytes


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("norms", [True, False], ids=["norms", "no norms"])
@pytest.mark.parametrize("schemes", ["filters", "batch", "batch:1", "batch:2", {"0": "inputs"}])
def test_bytes_are_those_that_are_counted(norms, schemes):
    ranks = world_size()
    module = seeded(lambda: network(norms))
    weights, example = WEIGHTS[:ranks], batch((2, 2, 8, 8))
    model = hetmp.slice_model(module, weights, schemes=schemes, example_input=example)
    runtime, rank = model.hetmp, model.hetmp.group.rank
    counted, computed = [], []
    for images in (7, 3):
        before = sum(counters(model))
        rank_loss(model(batch((images, 2, 8, 8))), rank).backward()
        counted.append(sum(counters(model)) - before)
        moved = step_bytes(runtime.graph, runtime.schedule, runtime.table, images)
        computed.append(moved.received[rank])
    assert computed == counted
    by_images = isinstance(schemes, str) and schemes.startswith("batch")
    assert (moved.norms > 0) == (norms and by_images)
    assert (moved.replicated > 0) == by_images


@pytest.mark.mpi(min_size=2)
def test_schemes_are_given_to_slice_model():
    """The same as a plan that is made with them; beside a plan they are refused."""
    module, weights = seeded(lambda: network(True)), WEIGHTS[: world_size()]
    model = hetmp.slice_model(module, weights, schemes="batch:2")
    plan = hetmp.plan_from_weights(hetmp.read_graph(module), weights, "batch:2")
    assert model.hetmp.plan == plan
    assert "% of images" in repr(model.hetmp)
    assert "full -> batch 3:1" in repr(model)
    assert "of the images, statistics of the whole batch" in repr(model.get_submodule("1"))
    with pytest.raises(hetmp.HetmpError, match="give schemes only with weights"):
        hetmp.slice_model(module, plan, schemes="batch")
    with pytest.raises(hetmp.HetmpError, match="give K from 0 to 4"):
        hetmp.slice_model(module, weights, schemes="batch:5")
    with pytest.raises(hetmp.HetmpError, match="'9x', which is not a layer that mixes"):
        hetmp.slice_model(module, weights, schemes={"9x": "batch"})
