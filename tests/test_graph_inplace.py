"""Work in place: it is followed where it can be, and refused by its line where it cannot."""

import operator
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.reading import read, refusal, titles


def taken(graph) -> list[tuple[str, list[str]]]:
    """(name, the values that it takes) of every operation."""
    return [(node.name, list(node.call.values)) for node in graph.nodes]


def assigned(self, x):
    y = self.conv(x)
    y += 1
    return self.relu(y)


def assigned_under_two_names(self, x):
    y = z = self.conv(x)
    y += 1
    return self.relu(z)


def called(self, x):
    y = self.conv(x)
    y.add_(1)
    return self.relu(y)


def asked_by_a_keyword(self, x):
    y = self.conv(x)
    F.relu(y, inplace=True)
    return self.relu(y)


def asked_by_place(self, x):
    y = self.conv(x)
    F.relu(y, True)
    return self.relu(y)


def by_its_name(self, x):
    y = self.conv(x)
    F.relu_(y)
    return self.relu(y)


def by_a_layer(self, x):
    y = self.conv(x)
    self.inplace(y)
    return self.relu(y)


WAYS = [
    assigned,
    assigned_under_two_names,
    called,
    asked_by_a_keyword,
    asked_by_place,
    by_its_name,
    by_a_layer,
]


@pytest.mark.parametrize("run", WAYS, ids=lambda run: run.__name__)
def test_whatever_takes_it_afterwards_takes_the_result(run):
    """Also where the result itself is not used."""
    graph = read(run, inplace=nn.ReLU(inplace=True))
    (_, first), (change, second), (_, third) = taken(graph)
    assert (first, second, third) == (["x"], ["conv"], [change])


def test_one_change_after_another():
    """Every name of the tensor stands for what it is now."""

    def run(self, x):
        y = self.conv(x)
        z = F.relu(y, inplace=True)
        y *= 2
        z -= 1
        return self.norm(y), self.relu(z), y

    graph = read(run)
    assert taken(graph) == [
        ("conv", ["x"]),
        ("relu", ["conv"]),
        ("imul", ["relu"]),
        ("isub", ["imul"]),
        ("norm", ["isub"]),
        ("relu_1", ["isub"]),
    ]
    assert graph.training.result[2].name == "isub"


def test_what_took_it_before_took_what_it_was():
    def run(self, x):
        y = self.conv(x)
        z = self.norm(y)
        y += 1
        return y + z

    assert taken(read(run))[1:] == [
        ("norm", ["conv"]),
        ("iadd", ["conv"]),
        ("add", ["iadd", "norm"]),
    ]


def test_a_view_of_the_result_may_be_used():
    def run(self, x):
        y = self.conv(x)
        y += 1
        flat = y.flatten(1)
        flat += 1
        return flat.tanh()

    assert titles(read(run)) == ["Conv2d", "iadd", "flatten", "iadd", "tanh"]


def test_operators_named_with_an_underscore_change_nothing():
    """``and_`` and ``or_`` are named so because ``and`` and ``or`` are words of the language."""

    def run(self, x):
        y = self.conv(x)
        mask = y > 0
        both = mask & (y < 1)
        either = operator.or_(mask, both)
        return y * mask * both * either

    assert taken(read(run))[-3:] == [
        ("mul", ["conv", "gt"]),
        ("mul_1", ["mul", "and_"]),
        ("mul_2", ["mul_1", "or_"]),
    ]


def test_numbers_are_never_changed_in_place():
    """A size is no tensor: ``n *= 2`` makes another number."""

    def run(self, x):
        y = self.conv(x)
        shape = x.shape
        n = m = shape[2]
        n *= 2
        return y.reshape(shape[0], 3, m // 2, n)

    graph = read(run, torch.empty(2, 3, 4, 4))
    assert "imul" in titles(graph)
    assert graph.nodes[-1].call.result.shape == (None, 3, 2, 8)


# --- what is refused ----------------------------------------------------------------------------


def line_of(text: str) -> str:
    """The source line that a refusal points at."""
    file, number = re.search(r"at (/.+?\.py):(\d+)", text).groups()
    assert Path(file).name == Path(__file__).name
    return Path(file).read_text().splitlines()[int(number) - 1].strip()


def flat_view(y):
    return y.flatten(1)


def part(y):
    return y[:, :2]


def chunk(y):
    return y.chunk(3, 1)[0]


def dropped(y):
    return F.dropout(y, training=False)


def transposed(y):
    return y.data.transpose(1, 2)


def with_a_sign(y):
    return +y


def named_axes(y):
    return torch.einsum("nchw->nhwc", y)


VIEWS = [flat_view, part, chunk, dropped, transposed, with_a_sign, named_axes]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_a_view_that_is_used_after_its_memory_changed(view):
    def run(self, x):
        y = self.conv(x)
        seen = view(y)
        y.add_(1)  # changed
        return self.relu(y), seen

    text = refusal(run)
    assert line_of(text) == "y.add_(1)  # changed"
    assert "changes memory in place that" in text
    assert "change a copy instead" in text


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_memory_that_is_used_after_a_view_of_it_changed(view):
    def run(self, x):
        y = self.conv(x)
        seen = view(y)
        seen += 1  # changed
        return self.relu(y)

    assert line_of(refusal(run)) == "seen += 1  # changed"


def test_a_view_that_is_not_used_again_may_be_changed():
    def run(self, x):
        y = self.conv(x)
        seen = y.flatten(1)
        seen += 1
        return seen

    assert titles(read(run)) == ["Conv2d", "flatten", "iadd"]


def test_an_assignment_into_a_part():
    def run(self, x):
        y = self.conv(x)
        y[:, 0] = 1
        return self.relu(y)

    graph = read(run)
    assert titles(graph) == ["Conv2d", "assigned", "ReLU"]
    assert list(graph.nodes[-1].call.values) == ["assigned"]


def test_an_assignment_into_a_part_of_a_view():
    def run(self, x):
        y = self.conv(x)
        y.flatten(1)[:, 0] = 1  # changed
        return y

    assert line_of(refusal(run)) == "y.flatten(1)[:, 0] = 1  # changed"


def test_an_assignment_that_adds_to_a_part():
    def run(self, x):
        y = self.conv(x)
        y[:, 0] += 1
        return y

    assert line_of(refusal(run)) == "y[:, 0] += 1"


class TestStateOfTheModulesOwn:
    """A buffer that forward changes would change on every rank in its own way, or not at all."""

    def test_it_may_be_read(self):
        graph = read(lambda self, x: self.conv(x) * self.norm.running_var[0])
        assert list(graph.training.attributes.values()) == ["norm.running_var"]
        assert titles(graph) == ["Conv2d", "getitem", "mul"]

    def test_it_may_not_be_changed(self):
        def run(self, x):
            self.norm.running_var.add_(1)
            return self.conv(x)

        text = refusal(run)
        assert "changes 'norm.running_var' in place" in text
        assert line_of(text) == "self.norm.running_var.add_(1)"
        assert "hetmp.leaf" in text

    def test_it_may_not_be_assigned(self):
        def run(self, x):
            self.norm.running_var += 1
            return self.conv(x)

        text = refusal(run)
        assert "'norm.running_var'" in text
        assert line_of(text) == "self.norm.running_var += 1"

    def test_it_may_not_be_assigned_and_then_read(self):
        """Positions that are made when an image of another size comes: timm's ConViT."""

        def run(self, x):
            images = x.shape[0]
            if self.norm.running_var.dim() == 1:
                self.norm.running_var = self.norm.running_var.view(1, -1, 1, 1)
            return self.conv(x) * self.norm.running_var.expand(images, -1, -1, -1)

        text = refusal(run, torch.rand(2, 3, 4, 4))
        assert "'norm.running_var' is assigned" in text
        assert line_of(text) == "self.norm.running_var = self.norm.running_var.view(1, -1, 1, 1)"

    def test_parameters_neither(self):
        def run(self, x):
            self.conv.weight.data.clamp_(-1, 1)
            return self.conv(x)

        text = refusal(run)
        assert "'conv.weight'" in text
        assert line_of(text) == "self.conv.weight.data.clamp_(-1, 1)"


def test_a_product_has_memory_of_its_own():
    """Attention scores are scaled in place while other parts of the projection are still needed."""

    def run(self, x):
        first, second, third = self.conv(x).chunk(3, 1)
        scores = torch.einsum("nchw,ncvw->nhv", first, second)
        scores *= 0.5
        return self.relu(third), scores

    assert "einsum" in titles(read(run))
