"""What torch.fx sees of a module: functions, branches, modes, constants, leaves, control flow."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.reading import Running, read, refusal, titles
from hetmp.ops import references
from hetmp.slicing.graph import leaf, read_graph

# --- functions, methods and branches ------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda self, x: F.relu(self.conv(x)), ["Conv2d", "relu"]),
        (lambda self, x: self.conv(x).relu(), ["Conv2d", "relu"]),
        (lambda self, x: self.conv(x).flatten(1), ["Conv2d", "flatten"]),
        (lambda self, x: torch.flatten(self.conv(x), 1), ["Conv2d", "flatten"]),
        (lambda self, x: self.conv(x) + x, ["Conv2d", "add"]),
        (lambda self, x: 2 - self.conv(x), ["Conv2d", "sub"]),
        (lambda self, x: torch.cat([x, self.conv(x)], 1), ["Conv2d", "cat"]),
        (lambda self, x: self.conv(x) * self.conv.bias.sum(), ["Conv2d", "sum", "mul"]),
    ],
)
def test_functions_and_methods_are_operations(run, named):
    graph = read(run)
    assert titles(graph) == named
    assert not list(graph.fallbacks())


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: torch.stack(self.conv(x).split(1, 1)),
        lambda self, x: torch.cat(tensors=self.conv(x).chunk(3, 1)),
        lambda self, x: torch.stack(self.conv(x).unbind(1)),
    ],
)
def test_a_function_takes_all_parts_of_an_activation_as_they_come(run):
    """A tuple of parts goes to a function of torch's that has no other tensor."""
    graph = read(run, torch.rand(2, 3, 4, 4))
    assert titles(graph)[0] == "Conv2d"
    assert titles(graph)[-1] in ("stack", "cat")


def test_branches_take_the_same_value():
    graph = read(lambda self, x: (lambda y: self.norm(y) + self.relu(y))(self.conv(x)))
    consumers = graph.training.consumers("conv")
    assert [node.path for node in consumers] == ["norm", "relu"]
    assert list(graph.nodes[-1].call.values) == ["norm", "relu"]


def test_parameters_and_buffers_are_values():
    graph = read(lambda self, x: self.conv(x) * self.conv.weight.sum() + self.norm.running_mean[0])
    assert list(graph.training.attributes.values()) == ["conv.weight", "norm.running_mean"]
    assert not graph.constants


def test_functions_and_methods_that_nothing_uses_are_left_out():
    """A layer that nothing uses runs, if only for its state."""

    def run(self, x):
        y = self.conv(x)
        self.norm(y)
        y.mean()
        torch.exp(y).sum()
        return y

    assert titles(read(run)) == ["Conv2d", "BatchNorm2d"]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda self, x: self.conv(x).renorm(2, 1, 5), "hetmp has no rule for it"),
        (lambda self, x: torch.renorm(self.conv(x), 2, 1, 5), "hetmp has no rule for it"),
        (lambda self, x: self.conv(x) + torch.randn(x.shape), "it draws random numbers"),
        (lambda self, x: self.conv(x) + torch.rand_like(x), "no rule"),
        (lambda self, x: self.conv(x).view(torch.int32).view(torch.float32), "another dtype"),
    ],
)
def test_an_operation_that_cannot_be_sliced_says_why_and_where(run, reason):
    node = next(read(run).fallbacks())
    assert reason in node.reason
    assert re.search(rf"'{node.call.title}' at .*{Path(__file__).name}:\d+$", node.place)


def test_an_operation_is_placed_in_the_module_that_calls_it():
    outer = nn.Sequential(nn.Conv2d(3, 3, 1), Running(lambda self, x: self.conv(x).renorm(2, 1, 5)))
    (node,) = read_graph(outer).fallbacks()
    assert node.place.startswith("'renorm' of '1' at ")


# --- modes --------------------------------------------------------------------------------------


def test_one_trace_where_the_modes_are_alike():
    graph = read(lambda self, x: self.norm(self.conv(x)))
    assert graph.training is graph.evaluation
    assert len(graph.traces) == 1


def test_dropout_as_a_function_is_told_the_mode():
    graph = read(lambda self, x: F.dropout(self.conv(x), 0.3, training=self.training))
    training, evaluation = graph.traces
    told = [trace.nodes[-1].call.kwargs["training"] for trace in (training, evaluation)]
    assert told == [True, False]
    assert graph.training is training
    assert graph.evaluation is evaluation


def test_more_is_returned_in_training():
    def run(self, x):
        out = self.norm(self.conv(x))
        if self.training:
            return out, self.conv(out)
        return out

    graph = read(run)
    assert titles(graph.training) == ["Conv2d", "BatchNorm2d", "Conv2d"]
    assert titles(graph.evaluation) == ["Conv2d", "BatchNorm2d"]
    assert list(references(graph.training.result)) == ["norm", "conv_1"]
    assert list(references(graph.evaluation.result)) == ["norm"]
    assert [node.path for node in graph.mixing()] == ["conv"]


def test_a_layer_that_runs_in_one_mode_only_is_planned_too():
    def run(self, x):
        return self.conv(x) if self.training else self.other(self.conv(x))

    graph = read(run, other=nn.Conv2d(3, 5, 1))
    assert [node.path for node in graph.mixing()] == ["conv", "other"]


# --- constants ----------------------------------------------------------------------------------


def test_a_tensor_that_forward_makes_is_a_constant():
    graph = read(lambda self, x: self.conv(x) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
    ((path, constant),) = graph.constants.items()
    assert constant.flatten().tolist() == [1, 2, 3]
    assert list(graph.training.attributes.values()) == [path]
    assert len(graph.traces) == 1


@pytest.mark.parametrize("length", [3, 3000])
def test_constants_that_differ_between_the_modes(length):
    """Also where only one number among many differs."""

    def run(self, x):
        made = torch.ones(length)
        made[length // 2] = 2 if self.training else 3
        return self.conv(x) * made[length // 2]

    graph = read(run)
    assert len(graph.traces) == 2
    assert sorted(float(constant) for constant in graph.constants.values()) == [2, 3]


# --- leaves -------------------------------------------------------------------------------------


class Chooses(nn.Module):
    """Goes by an activation's values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


@leaf
class Marked(Chooses):
    """The same, kept as one."""


def test_a_leaf_is_kept_as_one():
    marked = leaf(Chooses())
    for layer in (marked, Marked()):
        graph = read(lambda self, x: self.norm(self.layer(self.conv(x))), layer=layer)
        (node,) = graph.fallbacks()
        assert node.place == f"'layer' ({type(layer).__name__})"
        assert [node.path for node in graph.nodes] == ["conv", "layer", "norm"]


def test_marking_one_module_marks_no_other():
    assert isinstance(leaf(Chooses()), Chooses)
    assert "control flow" in refusal(nn.Sequential(nn.Conv2d(3, 3, 1), Chooses()))


def test_a_leaf_may_take_and_give_several():
    @leaf
    class Swapped(nn.Module):
        def forward(self, x, y):
            return y, x

    graph = read(lambda self, x: self.layer(x, self.conv(x))[0], layer=Swapped())
    (node,) = graph.fallbacks()
    assert node.call.operands == ["x", "conv"]
    assert [item.shape[1] for item in node.call.result.items] == [3, 3]


# --- what cannot be traced ----------------------------------------------------------------------


def line_of(text: str) -> str:
    """The source line that a refusal points at."""
    file, number = re.search(r"at (/.+?\.py):(\d+)", text).groups()
    assert Path(file).name == Path(__file__).name
    return Path(file).read_text().splitlines()[int(number) - 1].strip()


def test_control_flow_on_values_is_refused():
    text = refusal(nn.Sequential(nn.Conv2d(3, 3, 1), Chooses()))
    assert "torch.fx cannot trace Sequential" in text
    assert "control flow" in text
    assert line_of(text) == "return x if x.sum() > 0 else -x"
    assert "hetmp.leaf(module)" in text


def test_a_loop_over_an_activation_is_refused():
    def run(self, x):
        return sum(self.conv(image) for image in x)

    assert line_of(refusal(run)) == "return sum(self.conv(image) for image in x)"


def test_an_error_of_the_modules_own_is_shown():
    def run(self, x):
        return self.missing(x)

    text = refusal(run)
    assert "no attribute 'missing'" in text
    assert line_of(text) == "return self.missing(x)"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1).item(),
        lambda: random.random(),
        lambda: np.random.rand(),  # noqa: NPY002
        lambda: torch.rand(3, 1, 1),
    ],
    ids=["torch", "random", "numpy", "a tensor"],
)
def test_numbers_drawn_once_for_all_are_refused(draw):
    """Stochastic depth by a coin that torch.fx would throw a single time."""
    text = refusal(lambda self, x: self.conv(x) * draw())
    assert "draws random numbers" in text
    assert "hetmp.leaf" in text
