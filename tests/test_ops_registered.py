"""Operators of the user's own, as docs/operators.md registers them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hetmp
from helpers.comparison import compare_training, make_plan, pick, pick_weights, seeded
from hetmp.core.state import FULL, Sliced, State
from hetmp.ops import LAYERS, Call, Cuts, OperatorRun, Rule, cut_along, known_layers, rule_for
from hetmp.slicing.graph import read_graph
from hetmp.slicing.schedule import CallStep


def documented() -> Any:
    """What the page defines, without its last block, which compares."""
    page = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "documented"}
    exec("\n".join(blocks[:-1]), names)
    return SimpleNamespace(**names)


PAGE = documented()


class ScaleRule(Rule):
    """Torch runs it on no channels, but the rule says that it does not."""

    runs_empty = False

    def cuts(self, run: OperatorRun) -> Cuts:
        return cut_along(run.layer, {"weight": 0}, run.source)

    def gives(self, call: Call, source: Sliced) -> State | None:
        return source if source.axis == 1 else None


@hetmp.operator(ScaleRule())
class Scale(nn.Module):
    """A factor for each channel; it looks at values, so torch.fx cannot trace it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            raise ValueError("no channels")
        return x * self.weight


class Turn(torch.autograd.Function):
    """Registered as it is, by its class."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return -x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


@hetmp.operator(Rule())
def turned(x: Tensor) -> Tensor:
    return Turn.apply(x)


class Both(nn.Module):
    """The page's layer and function, and more, between layers that mix channels."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.first, self.second = nn.Conv2d(3, 10, 3), nn.Conv2d(3, 10, 3)
        self.swish, self.scale = PAGE.Swish(10), Scale(10)
        self.last = nn.Conv2d(5 if dim == 1 else 10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.swish(self.first(x)) + self.scale(self.second(x))
        return self.last(turned(PAGE.gate(x=y, dim=self.dim)))


SCHEMES = (("filters",), ("inputs", "filters"), ("whole", "filters", "inputs"))


def calls(model: hetmp.SlicedModel) -> dict[str, CallStep]:
    found = (step for step in model.hetmp.schedule.steps if isinstance(step, CallStep))
    return {step.node.call.title: step for step in found}


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(3))
def test_the_documented_operators_equal_the_unsliced_ones(number):
    compare_training(seeded(Both), pick_weights(number), (2, 3, 6, 8))
    module = seeded(Both)
    plan = make_plan(module, pick_weights(number + 2), pick(SCHEMES, number), turned=True)
    compare_training(module, plan, (2, 3, 6, 8))


@pytest.mark.mpi
def test_slices_stay_slices_and_parameters_are_cut():
    model = hetmp.slice_model(seeded(Both), pick_weights(1), strict=True)
    for title in ("Swish", "Scale", "gate", "turned"):
        assert isinstance(calls(model)[title].after, Sliced), title
    assert isinstance(model.hetmp.table["swish.slope"].state, Sliced)
    assert isinstance(model.hetmp.table["scale.weight"].state, Sliced)


@pytest.mark.mpi
def test_a_setting_that_the_rule_does_not_speak_for_is_computed_whole():
    model, _ = compare_training(seeded(lambda: Both(2)), pick_weights(2), (2, 3, 6, 8))
    assert calls(model)["gate"].after == FULL
    assert calls(model)["gate"].node.reason == "it gates axis 2, not the channels"


def test_a_function_runs_as_it_is_where_nothing_is_traced():
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(PAGE.gate(x), x[:, :2] * x[:, 2:])
    assert PAGE.gate.__name__ == "gate"


def test_a_plain_function_is_looked_into():
    def plain(x: Tensor) -> Tensor:
        return x * 2

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return plain(turned(self.conv(x)))

    titles = [node.call.title for node in read_graph(Calls(), torch.empty(1, 3, 4, 4)).nodes]
    assert titles == ["Conv2d", "turned", "mul"]


def test_registering_adds_to_the_tables():
    class Own(nn.Module):
        pass

    def function(x: Tensor) -> Tensor:
        return x

    rule = hetmp.register(Rule(), Own, function, Turn)
    assert rule_for(Own()) is rule_for(function) is rule_for(Turn.apply) is rule
    assert Own in known_layers()
    assert Own not in LAYERS
    assert set(LAYERS) <= set(known_layers())


def test_a_rule_names_its_own_targets():
    class Own(nn.Module):
        pass

    class OwnRule(Rule):
        layers = (Own,)

    assert hetmp.register(OwnRule()) is rule_for(Own())


def test_another_rule_is_replaced_only_if_asked():
    class Own(nn.Module):
        pass

    class Fresh(nn.Module):
        pass

    first, second = hetmp.register(Rule(), Own), Rule()
    with pytest.raises(hetmp.HetmpError, match=r"Rule is already the rule of 'Own'.*replace=True"):
        hetmp.register(second, Fresh, Own)
    assert rule_for(Own()) is first
    assert rule_for(Fresh()) is None
    hetmp.register(first, Own)
    hetmp.register(second, Own, replace=True)
    assert rule_for(Own()) is second


@pytest.mark.parametrize("taken", [nn.Conv2d, torch.relu, "relu"])
def test_what_hetmp_has_a_rule_for_is_refused(taken):
    with pytest.raises(hetmp.HetmpError, match=r"is already the rule of"):
        hetmp.register(Rule(), taken)


@pytest.mark.parametrize(
    ("rule", "targets", "told"),
    [
        (ScaleRule, (Scale,), r"only a hetmp.ops.Rule can be registered.*give ScaleRule\(\)"),
        ("relu", (), "only a hetmp.ops.Rule can be registered, got 'relu'"),
        (Rule(), (), "Rule names no layers, functions or methods"),
        (Rule(), (3,), "layer classes, functions and names of methods, got 3"),
        (Rule(), (nn.ReLU(),), "layer classes, functions and names of methods, got ReLU"),
        (Rule(), ("no_such_method",), "tensors have no method 'no_such_method'"),
    ],
)
def test_what_cannot_be_registered_is_refused(rule, targets, told):
    with pytest.raises(hetmp.HetmpError, match=told):
        hetmp.register(rule, *targets)


def test_only_functions_and_layer_classes_are_decorated():
    with pytest.raises(hetmp.HetmpError, match=r"decorates functions and nn\.Module classes"):
        hetmp.operator(Rule())(torch.fft.fft)
    with pytest.raises(hetmp.HetmpError, match=r"decorates functions and nn\.Module classes"):
        hetmp.operator(Rule())(dict)
