"""What a module does with the sizes of its activations while it is traced on an example."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.reading import Running, read, refusal, titles
from hetmp.core.errors import HetmpError
from hetmp.slicing.graph import read_graph

EXAMPLE = torch.empty(2, 3, 8, 6)


def kept(graph) -> list[str]:
    """What is called, but for sizes and what is computed from them."""
    return [
        node.call.title
        for node in graph.nodes
        if node.call.result.holds_tensors or node.call.title == "confirm"
    ]


# --- numbers that Python is given -----------------------------------------------------------------


def test_a_branch_on_a_size_is_taken_and_confirmed():
    def run(self, x):
        if x.shape[1] != 3:
            raise ValueError("three channels, please")
        return self.conv(x)

    graph = read(run, EXAMPLE)
    assert kept(graph) == ["confirm", "Conv2d"]
    (confirmed,) = (node for node in graph.nodes if node.call.title == "confirm")
    assert confirmed.call.args[1] is False
    assert confirmed.line.startswith(__file__)


def test_without_an_example_it_is_asked_for():
    def run(self, x):
        return self.relu(self.conv(x)) if x.shape[2] > 4 else self.conv(x)

    assert "Code that depends on a size needs an example_input" in refusal(run)


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: sum(self.conv(x) for _ in range(x.shape[1])),
        lambda self, x: sum([self.conv(x)] * x.size(1)),
        lambda self, x: sum(self.conv(x) for _ in range(len(x.shape) - 1)),
        lambda self, x: sum(self.conv(x) for _ in x.shape[1:]),
    ],
)
def test_loops_over_sizes(run):
    convolutions = [title for title in titles(read(run, EXAMPLE)) if title == "Conv2d"]
    assert len(convolutions) in (1, 3)


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: F.interpolate(self.conv(x), size=x.shape[2:]),
        lambda self, x: F.interpolate(self.conv(x), size=[2 * int(s) for s in x.shape[-2:]]),
        lambda self, x: self.conv(x).view(*x.shape[:2], -1),
        lambda self, x: (lambda n, c, h, w: self.conv(x).reshape(n, c, h * w))(*x.shape),
        lambda self, x: F.pad(self.conv(x), (0, math.ceil(x.shape[3] / 4) * 4 - x.shape[3])),
        lambda self, x: F.avg_pool2d(self.conv(x), kernel_size=x.size()[2:]),
        lambda self, x: self.conv(x) / x.shape.numel(),
        lambda self, x: self.conv(x) + torch.ones(x.shape[0], 3, 1, 1),
        lambda self, x: torch.cat([*self.conv(x).chunk(3, 1)], 1),
        lambda self, x: self.conv(x) if isinstance(x, Tensor) else None,
        lambda self, x: self.conv(x) if isinstance(x.shape[0], int) else None,
        lambda self, x: self.conv(x) if x.ndim == 4 == x.dim() else None,
        lambda self, x: self.conv(x) + torch.as_tensor(x),
        lambda self, x: self.conv(x).mT,
        lambda self, x: self.conv(x).flatten(1).T,
    ],
)
def test_sizes_are_numbers_to_python(run):
    graph = read(run, EXAMPLE)
    assert not list(graph.fallbacks())
    given = graph.training.values[graph.nodes[-1].name]
    module = Running(run)
    assert given.sizes[0] == tuple(module(torch.rand(EXAMPLE.shape)).shape)


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: self.conv(x).view(x.shape[0], -1),
        # torch asks the size for a number before it hands it on.
        lambda self, x: torch.reshape(self.conv(x), (x.shape[0], -1)),
    ],
    ids=["method", "function"],
)
def test_a_size_that_is_not_looked_at_stays_open(run):
    """A batch of another size, and an image of another size, run as they are."""
    graph = read(run, EXAMPLE)
    assert "confirm" not in titles(graph)
    assert graph.training.values[graph.nodes[-1].name].shape == (None, 144)


def test_a_batch_that_is_looked_at_is_fixed():
    graph = read(lambda self, x: self.conv(x).view(int(x.shape[0]), -1), EXAMPLE)
    assert graph.training.values[graph.nodes[-1].name].shape == (2, 144)


def test_named_results_are_taken_by_name():
    graph = read(lambda self, x: self.conv(x) + torch.max(x, 1, keepdim=True).values, EXAMPLE)
    assert kept(graph)[-1] == "add"


def test_python_knows_stand_ins_for_tensors_only_while_it_traces():
    seen = []

    def run(self, x):
        seen.append(x)
        return self.conv(x)

    read(run, EXAMPLE)
    assert not isinstance(seen[0], Tensor)


def test_what_looks_at_values_is_refused_and_its_module_named():
    class Choosy(nn.Module):
        def forward(self, x):
            return x if x.mean() > 0 else -x

    module = nn.Sequential(nn.Conv2d(3, 3, 1), Choosy())
    with pytest.raises(HetmpError, match=r"mark its module, '1' \(Choosy\), with"):
        read_graph(module, EXAMPLE)


def test_an_example_that_does_not_fit():
    text = refusal(lambda self, x: self.conv(x).view(2, 5), EXAMPLE)
    assert text.startswith("an input of shape (2, 3, 8, 6) does not fit the model: ")


# --- a user's own autograd function ---------------------------------------------------------------


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


@pytest.mark.parametrize("example", [EXAMPLE, None])
def test_an_autograd_function_is_one_operation(example):
    graph = read(lambda self, x: Swish.apply(self.conv(x)), example)
    (node,) = graph.fallbacks()
    assert node.call.title == "apply"
    assert Swish.apply(torch.ones(1)).item() == pytest.approx(0.731, abs=1e-3)


# --- sizes as text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        lambda x: f"{x.shape[2]}",
        lambda x: str(x.shape[2]),
        lambda x: str(tuple(x.shape))[:-1],
        lambda x: "%d" % x.shape[2],  # noqa: UP031
    ],
    ids=["formatted", "str", "of a tuple", "old"],
)
def test_a_size_that_becomes_text_is_fixed(text):
    """It may name a table's entry. Nothing else follows a text."""

    def run(self, x):
        return self.conv(x) * len(text(x))

    graph = read(run, torch.empty(2, 3, 8, 8))
    assert "confirm" in titles(graph)
    assert "depends on a size" in refusal(run)


def test_a_size_in_a_message_stays_open():
    def run(self, x):
        torch._assert(
            x.shape[2] % 2 == 0,
            f"{x.shape[2]} is odd",
        )
        assert x.dim() == 4, f"got {x.shape}"
        return self.conv(x)

    graph = read(run, torch.empty(2, 3, 8, 8))
    assert "confirm" not in titles(graph)
