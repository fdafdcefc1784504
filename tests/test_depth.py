"""Deep networks: what planning and scheduling do grows with the layers, not with their square."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hetmp
from hetmp.core.open_axis import Axis
from hetmp.slicing.channel_groups import channel_groups
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.table import make_table

BLOCKS = 40


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


def residual(blocks: int) -> nn.Module:
    """Every block's output is tied to all that came before."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), *(Residual(4) for _ in range(blocks)))


def shared(blocks: int) -> nn.Module:
    """One norm under many names."""
    norm = nn.BatchNorm2d(4)
    units = [nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.ReLU()) for _ in range(blocks)]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *units)


class Scaled(nn.Module):
    """Every block reads a parameter of its own, and all their outputs are returned."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))
        self.scales = nn.ParameterList(torch.ones(4, 1, 1) for _ in range(blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, made = self.first(x), []
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = layer(x) * scale
            made.append(x)
        return made


def graph_of(module: nn.Module) -> ModelGraph:
    return hetmp.read_graph(module, torch.empty(2, 3, 4, 4))


def calls_made(work: Callable[[], object]) -> int:
    """How many functions of Python's are called, comprehensions' turns included."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("build", [residual, shared, Scaled])
def test_the_work_grows_as_the_layers_do(build):
    counts = []
    for blocks in (BLOCKS, 2 * BLOCKS, 4 * BLOCKS):
        graph = graph_of(build(blocks))

        def work(graph: ModelGraph = graph) -> None:
            plan = hetmp.plan_from_weights(graph, [3, 2, 1])
            make_table(graph, schedule_model(graph, plan))

        counts.append(calls_made(work))
    # Linear work adds twice as much for twice the blocks; what is quadratic adds four times.
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0])


def test_ties_one_after_the_other_make_no_long_chains():
    first, other = Axis.fresh(4), Axis.fresh(4)
    assert first.tie(other)
    for forward in (True, False) * sys.getrecursionlimit():
        last = Axis.fresh(4)
        assert last.tie(other) if forward else other.tie(last)
        other = last
    (atom, _), steps = first._pieces[0], 0
    while atom.parts is not None:
        ((atom, _),), steps = atom.parts, steps + 1
    assert steps <= 2
    assert first.leaves == other.leaves


def test_an_axis_may_have_more_pieces_than_python_may_recurse():
    axes = [Axis.fresh(sys.getrecursionlimit() + 100)]
    for _ in range(axes[0].total - 1):  # an axis that is cut into single indices from the left
        first, rest = axes[-1].cut(0, 1), axes[-1].cut(1, axes[-1].total)
        assert first is not None
        assert rest is not None
        axes.append(rest)
    assert len(axes[0].leaves) == axes[0].total


def test_a_deep_stage_is_one_channel_group():
    groups = channel_groups(graph_of(residual(BLOCKS))).groups
    assert [(group.units, len(group.layers)) for group in groups] == [(4, BLOCKS + 1)]
