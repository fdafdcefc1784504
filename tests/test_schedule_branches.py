"""Where exchanges stand in modules with branches, shared layers and two modes: no MPI."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.reading import Running, read
from helpers.scheduling import GATHER, check_states, told
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout, Partition, Piece
from hetmp.core.state import FULL, PARTIAL, Sliced
from hetmp.ops import Value
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import PLAIN, read_graph
from hetmp.slicing.plan import Plan
from hetmp.slicing.schedule import CallStep, ExchangeStep, Schedule
from hetmp.slicing.scheduler import schedule_model

WEIGHTS = (3, 0, 2)


def schedule(run, *, change=None, example=None, **layers: nn.Module) -> Schedule:
    """What runs with the default plan, or with what *change* makes of it."""
    graph = read(run, example, **layers)
    plan = plan_from_weights(graph, WEIGHTS)
    made = schedule_model(graph, plan if change is None else change(plan))
    check_states(made)
    return made


def conv(before: int = 3, after: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(before, after, 1, **options)


def exchanges(made: Schedule) -> list[ExchangeStep]:
    return [step for step in made.steps if isinstance(step, ExchangeStep)]


def call(made: Schedule, name: str) -> CallStep:
    return next(step for step in made.steps if step.name == name and isinstance(step, CallStep))


# --- branches -----------------------------------------------------------------------------------


def test_a_value_that_several_layers_take_is_gathered_once():
    def run(self, x):
        y = self.conv(x)
        return self.a(y) + self.b(y), y

    made = schedule(run, a=conv(), b=conv())
    assert told(made) == ["Conv2d", GATHER, "Conv2d", "Conv2d", "add", GATHER]


def test_tied_partitions_are_added_without_an_exchange():
    """The slices of both lie where the sum's do; what goes on goes on with slices."""
    made = schedule(lambda self, x: self.relu(self.conv(x) + self.b(x)), b=conv())
    assert told(made) == ["Conv2d", "Conv2d", "add", "ReLU", GATHER]


def test_a_residual_block_gathers_what_its_layers_take():
    def run(self, x):
        y = self.conv(x)
        return self.relu(y + self.norm(self.b(self.relu(y))))

    made = schedule(run, b=conv())
    assert told(made) == [
        "Conv2d", "ReLU", GATHER, "Conv2d", "BatchNorm2d", "add", "ReLU", GATHER,
    ]  # fmt: skip


def test_unlike_partitions_meet_after_one_exchange():
    """Each rank sends those channels that another one holds in the other layer."""

    def change(plan: Plan) -> Plan:
        return plan.with_layer("b", counts=(0, 2, 1))

    made = schedule(lambda self, x: self.conv(x) + self.b(x), change=change, b=conv())
    assert told(made) == ["Conv2d", "Conv2d", "sliced -> sliced", "add", GATHER]
    moved = exchanges(made)[0]
    assert moved.before.layout.counts == (0, 2, 1)
    assert moved.after == call(made, "conv").after == call(made, "add").before


def test_what_is_full_is_cut_for_nothing():
    made = schedule(lambda self, x: self.conv(x) + x)
    assert told(made) == ["Conv2d", "full -> sliced", "add", GATHER]


def test_a_gate_is_cut_like_what_it_gates():
    """Squeeze and excitation: only the squeezed vectors are gathered."""

    def run(self, x):
        y = self.conv(x)
        pooled = F.adaptive_avg_pool2d(y, 1)
        return y * torch.sigmoid(self.up(F.relu(self.down(pooled))))

    made = schedule(run, down=conv(3, 2), up=conv(2, 3))
    assert told(made) == [
        "Conv2d", "adaptive_avg_pool2d", GATHER, "Conv2d", "relu", GATHER, "Conv2d", "sigmoid",
        "mul", GATHER,
    ]  # fmt: skip


def test_a_concatenation_keeps_a_layout_of_pieces():
    made = schedule(lambda self, x: self.norm8(torch.cat([self.conv(x), self.b(x)], 1)),
                    b=conv(3, 5), norm8=nn.BatchNorm2d(8))  # fmt: skip
    assert told(made) == ["Conv2d", "Conv2d", "cat", "BatchNorm2d", GATHER]
    layout = Layout((Piece(Partition((2, 0, 1))), Piece(Partition((3, 0, 2)))))
    assert call(made, "cat").after == Sliced(layout)
    assert call(made, "norm8").cuts["weight"] == Sliced(layout, 0)
    assert layout.slices(2) == (slice(2, 3), slice(6, 8))


def test_the_input_joins_a_concatenation_in_slices():
    made = schedule(lambda self, x: torch.cat([x, self.conv(x)], 1))
    assert told(made) == ["Conv2d", "full -> sliced", "cat", GATHER]


def test_parts_of_a_slice_are_slices():
    def run(self, x):
        a, b = self.b(x).chunk(2, 1)
        return a * torch.sigmoid(b)

    made = schedule(run, b=conv(3, 10))
    assert told(made) == ["Conv2d", "chunk", "getitem", "getitem", "sigmoid", "mul", GATHER]
    assert call(made, "b").after.layout.counts == (6, 0, 4)
    assert [state.layout.counts for state in call(made, "chunk").after] == [(3, 0, 2)] * 2


def test_parts_that_are_handed_out_are_gathered_each():
    made = schedule(lambda self, x: self.conv(x).chunk(3, 1))
    assert told(made) == ["Conv2d", "chunk", *["getitem"] * 3, *[GATHER] * 3]


def test_what_has_no_rule_is_computed_whole():
    made = schedule(lambda self, x: self.relu(self.conv(x)).flip(1) + x)
    assert told(made) == ["Conv2d", "ReLU", GATHER, "flip", "add"]
    assert call(made, "flip").run.flow.gives == FULL


# --- grouped convolutions -----------------------------------------------------------------------


def test_a_depthwise_convolution_takes_slices():
    """No exchange stands before it, and its filters are cut like what it takes."""
    made = schedule(
        lambda self, x: self.conv(self.deep(self.relu(self.b(x)))),
        b=conv(3, 7), deep=conv(7, 7, groups=7), conv=conv(7, 4),
    )  # fmt: skip
    assert told(made) == ["Conv2d", "ReLU", "Conv2d", GATHER, "Conv2d", GATHER]
    deep = call(made, "deep")
    assert deep.before == deep.after == call(made, "b").after
    assert deep.cuts == {name: Sliced(deep.after.layout, 0) for name in ("weight", "bias")}


def test_groups_that_widen_are_cut_between_groups():
    made = schedule(lambda self, x: self.b(self.a(x)), a=conv(3, 6), b=conv(6, 9, groups=3))
    assert told(made) == ["Conv2d", "Conv2d", GATHER]
    assert call(made, "b").before.layout.counts == (4, 0, 2)
    assert call(made, "b").after.layout.counts == (6, 0, 3)


def test_a_plan_that_cuts_a_group_is_refused():
    def change(plan: Plan) -> Plan:
        return plan.with_layer("b", counts=(5, 0, 4))

    with pytest.raises(HetmpError, match=r"'b' \(Conv2d\) .* inside one of its 3 groups.* of 3"):
        schedule(lambda self, x: self.b(self.a(x)), change=change,
                 a=conv(3, 6), b=conv(6, 9, groups=3))  # fmt: skip


def test_a_grouped_layer_cannot_follow_inputs():
    def change(plan: Plan) -> Plan:
        return plan.with_layer("b", scheme="inputs")

    with pytest.raises(
        HetmpError, match=r"'b' \(Conv2d\) has groups: .* filters or batch or whole"
    ):
        schedule(lambda self, x: self.b(x), change=change, b=conv(3, 3, groups=3))


# --- layers that run more than once, tensors that are shared ------------------------------------


def test_a_layer_that_runs_twice_is_cut_once():
    made = schedule(lambda self, x: self.norm(self.b(self.norm(self.conv(x)))), b=conv())
    assert told(made) == ["Conv2d", "BatchNorm2d", GATHER, "Conv2d", "BatchNorm2d", GATHER]
    first, second = (step for step in made.steps if "norm" in step.name and "ex" not in step.name)
    assert first.cuts == second.cuts


def test_a_layer_with_parameters_runs_again_as_it_ran_first():
    """Its first run had all channels, so the second has too."""
    made = schedule(lambda self, x: self.norm(self.b(self.norm(x))), b=conv())
    assert told(made) == ["BatchNorm2d", "Conv2d", GATHER, "BatchNorm2d"]


def test_a_single_slope_fits_any_number_of_channels():
    """Nothing of it is cut, so each run is free to take what it finds."""
    made = schedule(
        lambda self, x: self.act(self.b(self.act(self.a(self.act(x))))),
        a=conv(3, 8), b=conv(8, 5), act=nn.PReLU(),
    )  # fmt: skip
    assert told(made) == ["PReLU", "Conv2d", "PReLU", GATHER, "Conv2d", "PReLU", GATHER]


def test_a_layer_that_counts_axes_from_the_right_meets_more_of_them():
    def run(self, x):
        y = self.ln(self.first(x))
        return self.ln(self.second(y.unsqueeze(1)))

    made = schedule(run, example=torch.empty(2, 4, 6), ln=nn.LayerNorm(6),
                    first=nn.Linear(6, 6), second=nn.Linear(6, 6), conv=nn.Identity())  # fmt: skip
    norms = [step for step in made.steps if told([step]) == ["LayerNorm"]]
    assert [step.before.axis for step in norms] == [2, 3]
    assert norms[0].cuts == norms[1].cuts
    assert len(exchanges(made)) == 2


def test_an_inputs_layer_that_meets_more_axes():
    def change(plan: Plan) -> Plan:
        return plan.with_layer("fc", scheme="inputs")

    def run(self, x):
        return self.fc(self.first(x)), self.fc(self.first(x.unsqueeze(1)))

    made = schedule(run, change=change, example=torch.empty(2, 4, 6),
                    first=nn.Linear(6, 9), fc=nn.Linear(9, 5), conv=nn.Identity())  # fmt: skip
    runs = [step for step in made.steps if step.name in ("fc", "fc_1")]
    assert [step.before.axis for step in runs] == [2, 3]
    assert runs[0].cuts == runs[1].cuts


def test_layers_that_share_a_weight_are_whole():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    graph = read_graph(module)
    plan = plan_from_weights(graph, WEIGHTS)
    assert [layer.scheme for layer in plan.layers] == ["whole", "whole", "filters"]
    assert told(schedule_model(graph, plan)) == ["Linear", "ReLU", "Linear", "Linear", GATHER]
    with pytest.raises(
        HetmpError, match=r"'2' \(Linear\) shares a parameter .* only batch or whole"
    ):
        schedule_model(graph, plan.with_layer("2", scheme="filters"))


def test_norms_that_share_a_slope_are_whole():
    class Shared(Running):
        def forward(self, x):
            return self.other(self.b(self.norm(self.conv(x))))

    module = Shared(None, b=conv(3, 3), other=nn.BatchNorm2d(3))
    module.other.weight = module.norm.weight
    graph = read_graph(module)
    made = schedule_model(graph, plan_from_weights(graph, WEIGHTS))
    check_states(made)
    assert told(made) == ["Conv2d", GATHER, "BatchNorm2d", "Conv2d", GATHER, "BatchNorm2d"]


def test_what_forward_looks_at_is_whole():
    """A sum over a slice of the weight would be another number on every rank."""
    made = schedule(lambda self, x: self.conv(x) * self.conv.weight.sum())
    assert told(made) == ["Conv2d", "sum", "mul"]
    made = schedule(lambda self, x: self.norm(self.conv(x)) * self.norm.running_var.mean())
    assert told(made) == ["Conv2d", GATHER, "BatchNorm2d", "mean", "mul"]


# --- modes --------------------------------------------------------------------------------------


def test_one_program_for_both_modes():
    made = schedule(lambda self, x: self.conv(x))
    assert made.training is made.evaluation
    assert made.programs == (made.training,)


def test_a_program_for_each_mode():
    def run(self, x):
        y = F.dropout(self.conv(x), training=self.training)
        return (self.b(y), y) if self.training else self.b(y)

    made = schedule(run, b=conv())
    training, evaluation = made.programs
    assert told(training.steps) == told(evaluation.steps)
    assert told(made) == 2 * ["Conv2d", "dropout", GATHER, "Conv2d", GATHER]
    assert isinstance(training.result, tuple)
    assert not isinstance(evaluation.result, tuple)


def test_both_modes_cut_a_layer_alike():
    """In evaluation the norm finds all channels, but holds the slopes of its slice."""

    def run(self, x):
        return self.norm(self.conv(x)) if self.training else self.norm(x)

    made = schedule(run)
    training, evaluation = made.programs
    assert told(training.steps) == ["Conv2d", "BatchNorm2d", GATHER]
    assert told(evaluation.steps) == ["full -> sliced", "BatchNorm2d", GATHER]


# --- what is handed out -------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: {"out": [y]}, lambda y: [y, None]])
def test_what_is_handed_out_is_full(wrap):
    made = schedule(lambda self, x: wrap(self.conv(x)))
    assert told(made) == ["Conv2d", GATHER]
    assert type(made.training.result) is type(wrap(0))


def test_bytes_that_an_exchange_moves():
    """Per image: 5 channels of 4 x 4 numbers of 4 bytes, of which rank 0 holds 3."""
    made = schedule(lambda self, x: self.b(x), example=torch.empty(6, 3, 4, 4), b=conv(3, 5))
    (gather,) = exchanges(made)
    forward: Sequence[float] = [gather.received(rank, 3)[0] for rank in range(3)]
    assert forward == [2 * 64, 5 * 64, 3 * 64]
    both = sum(sum(gather.received(rank, 3)) for rank in range(3))
    assert gather.received_by_all(3) == both == 2 * 2 * 5 * 64


def test_bytes_of_all_ranks_are_the_sum_over_the_ranks():
    """Also where slices are cut anew, and where a sum becomes full."""
    p, q = Layout.of(Partition((3, 1, 2))), Layout.of(Partition((1, 5, 0)))
    value = Value(((2, 6, 4, 4),), image_bytes=384)
    for before, after in (
        (Sliced(p, 1), Sliced(q, 1)),
        (PARTIAL, FULL),
        (PARTIAL, Sliced(p, 1)),
        (FULL, Sliced(q, 1)),
    ):
        step = ExchangeStep("y", ("x",), PLAIN, before, after, value)
        summed = sum(sum(step.received(rank, 3)) for rank in range(3))
        assert step.received_by_all(3) == pytest.approx(summed)
        assert (summed == 0) == (before == FULL)  # nothing moves to keep a slice of a whole
