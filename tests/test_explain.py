"""What ``hetmp explain`` says: of layers, exchanges, groups, shares; for a reader, without MPI."""

import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

import hetmp
from helpers.comparison import batch, pick_weights, rank_loss, seeded
from helpers.running import hetmp_run, refused
from hetmp import models
from hetmp.core.errors import HetmpError
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import read_graph
from hetmp.tools.explain import explain, render


class Odd(nn.Module):
    """A residual, a depthwise convolution, a chunk, a layer twice, and a sum of unlike layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 10, 1)
        self.depthwise, self.last = nn.Conv2d(10, 10, 3, groups=10), nn.Conv2d(5, 4, 1)
        self.norm = nn.GroupNorm(2, 10)

    def forward(self, x):
        y = self.a(x)
        y = y + self.b(self.b(y))
        left, right = self.norm(self.depthwise(y)).chunk(2, 1)
        return self.last(left * right), torch.renorm(right, 2, 1, 5.0)


def explained(module: nn.Module, shape, weights):
    graph = read_graph(module, torch.empty(2, *shape, device="meta"))
    return explain(graph, plan_from_weights(graph, weights))


def text_of(explanation, **options) -> str:
    """What is shown of it, 100 columns wide."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(explanation, **options))
    return console.export_text()


def test_a_row_per_layer_that_mixes_or_exchanges():
    rows = [row for row in explained(Odd(), (3, 8, 8), (3, 1)).rows if row.matters]
    told = [(row.name, row.kind, row.counts, row.scheme, row.exchanges) for row in rows]
    assert told == [
        ("a", "Conv2d 3×3", (8, 2), "filters", []),
        ("b", "Conv2d 1×1", (8, 2), "filters", ["Allgatherv"]),
        ("b", "Conv2d 1×1", (8, 2), "filters", ["Allgatherv"]),
        ("depthwise", "Conv2d 3×3, 10 groups", (8, 2), "filters", []),
        ("last", "Conv2d 1×1", (3, 1), "filters", ["Allgatherv"]),
        ("", "renorm()", (), "whole", ["Allgatherv"]),
        ("", "output", (), "", ["Allgatherv"]),
    ]
    assert rows[5].reason == "hetmp has no rule for it"
    assert {rows[i].groups for i in (0, 1, 3)} == {"1 1"}  # two halves, cut alike


def test_layers_by_batch_say_which_part_of_the_images_a_rank_computes():
    graph = read_graph(models.build("digits", (1, 8, 8), 10), torch.empty(2, 1, 8, 8))
    explanation = explain(graph, plan_from_weights(graph, (3, 1), "batch:2"), images=100)
    rows = [row for row in explanation.rows if row.matters]
    cells = [(row.name, row.counts, row.scheme, row.images, row.exchanges) for row in rows]
    assert cells == [
        ("features.conv1", ("75", "25"), "batch", True, ["-"]),
        ("features.conv2", ("75", "25"), "batch", True, []),
        ("classifier.fc", (8, 2), "filters", False, ["Allgatherv"]),
        ("", (), "", False, ["Allgatherv"]),
    ]
    assert explanation.held == (12_344, 11_186)  # the convolutions whole, of the last its share
    # A rank that has 75 images with 192 features receives the other 25, and back its 75's summand.
    assert rows[2].received == [100 * 192 * 4, 100 * 192 * 4]
    shown = text_of(explanation)
    assert "75/25 % of images" in shown
    assert "1.13 KiB for the statistics of 2 batch norms over all images" in shown


def test_bytes_are_those_of_the_formula():
    """A gather: what a rank has not; the way back: its own share from each other rank."""
    rows = explained(
        nn.Sequential(nn.Conv2d(3, 10, 1), nn.Conv2d(10, 4, 1)), (3, 6, 7), (3, 1)
    ).rows
    plane = 6 * 7 * 4
    assert rows[1].received == [2 * plane + 8 * plane, 8 * plane + 2 * plane]


def test_what_ranks_hold_sums_to_the_model():
    explanation = explained(models.build("resnet18", (3, 32, 32), 10), (3, 32, 32), (70, 25, 5))
    assert sum(explanation.held) == explanation.parameters == 11_173_962
    shares = [held / explanation.parameters for held in explanation.held]
    assert shares == pytest.approx([0.7, 0.25, 0.05], abs=0.01)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "unet"])
def test_bytes_are_those_on_the_wire(name):
    """Predicted and counted, for every exchange between layers, forward and backward."""
    module = seeded(lambda: models.build(name, (3, 16, 16), 5, width=0.1))
    model = hetmp.slice_model(module, pick_weights(1), example_input=batch((2, 3, 16, 16)))
    group, images = model.hetmp.group, 3
    rank_loss(model(batch((images, 3, 16, 16))), group.rank).backward()
    wrong = []
    steps = [s for s in model.hetmp.schedule.training.steps if "exchanged" in s.name]
    for step in steps:
        exchange = model.hetmp.exchange(0, step)
        told = step.received(group.rank, group.size)
        counted = exchange.forward_counter.bytes, exchange.backward_counter.bytes
        if [round(images * each) for each in told] != list(counted):
            wrong.append((step.name, told, counted))
    assert len(steps) > 5
    assert not wrong


def test_a_plan_for_another_model():
    graph = read_graph(models.build("digits", (1, 8, 8), 10))
    other = read_graph(models.build("paper-mnist", (1, 28, 28), 10))
    with pytest.raises(HetmpError, match="the plan is for another model"):
        explain(graph, plan_from_weights(other, (1, 2)))


def test_hooks_are_counted():
    """What is gathered for the hooks that a module has when it is given."""
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    plain = explained(module, (3, 4, 4), [2, 1])
    module[1].register_forward_hook(lambda part, args, output: None)
    hooked = explained(module, (3, 4, 4), [2, 1])
    assert hooked.hooked == ("1",)
    # What the norm takes and what it gives, there and back: 6 channels of 4 x 4, float32.
    assert sum(hooked.received) == sum(plain.received) + 4 * 6 * 4 * 4 * 4
    assert hooked.held == plain.held


def test_the_tables_fit_what_they_show():
    text = text_of(explained(Odd(), (3, 8, 8), (3, 1)), everything=True)
    assert "chunk()" in text
    assert "…" not in text
    assert re.search(r"1 operation computed whole on every rank:\n.*renorm\(\): hetmp has no", text)
    assert "a, b, depthwise" in text


# --- the command --------------------------------------------------------------------------------


def test_the_command_explains_without_mpi():
    done = hetmp_run("explain", "resnet50", "--weights", "70,25,5", COLUMNS="140")
    assert done.returncode == 0, done.stderr
    assert re.search(r"layer1\.0\.conv3 .*256 .*179/64/13 .*Allgatherv", done.stdout)
    assert "25,557,032 parameters" in done.stdout
    assert "rank 2: holds 1,285,195 parameters (5.0 %)" in done.stdout
    shown = "import sys; sys.argv = ['hetmp', 'explain', 'digits', '--weights', '2,1']\n"
    check = (
        "import hetmp.cli\ntry: hetmp.cli.main()\nfinally: assert 'mpi4py.MPI' not in sys.modules"
    )
    assert hetmp_run(module=("-c", shown + check), cold=True).returncode == 0


def test_the_commands_errors():
    refused(hetmp_run("explain", "resnet50"), "--weights", "--plan")
    refused(hetmp_run("explain", "resnet5", "--weights", "1"), "unknown model", "resnet50")
    mine = ("explain", "own_network:with_a_layer_of_my_own", "--weights", "1,2")
    refused(hetmp_run(*mine), "--shape", "--classes")
    mine += ("--shape", "3,8,8", "--classes", "4")
    done = hetmp_run(*mine)
    assert done.returncode == 0
    assert "Doubled" in done.stdout
    assert "no rule" in done.stdout
    refused(hetmp_run(*mine, "--strict"), "layer '0' (Doubled) cannot be sliced", "no rule")
