"""Dropout: what is dropped does not depend on how the channels are cut, and is random enough."""

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, make_plan, pick_weights, rank_loss, seeded
from hetmp.cluster import Group
from hetmp.core.partition import Layout, Partition
from hetmp.core.state import FULL, Sliced
from hetmp.ops import Call, Flow, OperatorRun, Ref, Value, keyed_dropouts, rule_for
from hetmp.ops.layers.dropout import KeyedDropout, Mask

IMAGES = (4, 3, 6, 6)


class Twice(nn.Module):
    """One dropout layer that runs on two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1)
        self.dropout = nn.Dropout(0.4)

    def forward(self, x):
        return self.dropout(self.second(self.dropout(self.first(x))))


STACK = {
    "elements": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.Dropout(0.4),
        nn.ReLU(),
        nn.Conv2d(7, 5, 2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(45, 6),
        nn.Dropout(0.2, inplace=True),
    ),
    "channels": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.Dropout2d(0.5), nn.Conv2d(7, 11, 2), nn.Dropout2d(0.3)
    ),
    "twice": Twice,
    "in front": lambda: nn.Sequential(nn.Dropout(0.3), nn.Conv2d(3, 7, 3), nn.Dropout(0.3)),
}


@pytest.mark.every_size
@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [("filters",), ("inputs",), ("whole", "inputs", "filters")])
@pytest.mark.parametrize("name", STACK)
def test_what_is_dropped_does_not_depend_on_the_partition(name, schemes):
    """Against the same model on one rank: outputs and gradients, over several steps."""
    from mpi4py import MPI

    module = seeded(STACK[name])
    example = torch.empty(*IMAGES, dtype=torch.float64)
    plan = make_plan(module, pick_weights(len(name)), schemes)
    sliced = hetmp.slice_model(module, plan, example_input=example)
    alone = hetmp.slice_model(module, [1], MPI.COMM_SELF)
    rank, ranks = sliced.hetmp.group.rank, sliced.hetmp.group.size
    for step in range(3):
        x = batch(IMAGES, step).requires_grad_()
        torch.manual_seed(10 + step)
        expected = alone(x)
        sum(rank_loss(expected, r, step) / ranks for r in range(ranks)).backward()
        mine = batch(IMAGES, step).requires_grad_()
        torch.manual_seed(10 + step + 100 * rank)  # rank 0's seed is what counts
        output = sliced(mine)
        rank_loss(output, rank, step).backward()
        assert (output == 0).sum() == (expected == 0).sum()
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mine.grad, x.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.every_size
@pytest.mark.mpi
def test_every_pass_drops_anew_and_every_layer_on_its_own():
    module = seeded(
        lambda: nn.Sequential(nn.Conv1d(1, 7, 1), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5))
    )
    with torch.no_grad():  # the output is what both layers have left of a one
        module[0].weight.zero_()
        module[0].bias.fill_(1)
    model = hetmp.slice_model(module, pick_weights(0))
    x = batch((50, 1, 20))
    first, second = model(x) != 0, model(x) != 0
    for kept in (first, second):
        assert abs(kept.double().mean() - 0.25) < 0.03  # a half of a half: not the same half
    assert abs((first & second).double().mean() - 0.0625) < 0.02
    channels = first.double().transpose(0, 1).reshape(7, -1)
    assert torch.corrcoef(channels).fill_diagonal_(0).abs().max() < 0.15
    assert (model.eval()(x) == 1).all()


def kept(p=0.3, shape=(64, 7, 9, 5), per_channel=False, state=FULL, rank=0, key=1234, number=0):
    """What one pass makes of ones."""
    layer = nn.Dropout(p)
    mask = Mask(per_channel, state, rank)
    KeyedDropout(layer, mask)
    mask.key, mask.number = key, number
    share = list(shape)
    if isinstance(state, Sliced):
        share[state.axis] = state.layout.counts[rank]
    return layer(torch.ones(*share, dtype=torch.float64))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("key", [0, 1, 2**62 + 12345])
def test_the_rate_is_right_and_the_mean_is_kept(p, key):
    y = kept(p, key=key)
    kept_values = y[y != 0]
    assert torch.allclose(kept_values, torch.full_like(kept_values, 1 / (1 - p)), rtol=1e-12)
    spread = (p * (1 - p) / y.numel()) ** 0.5
    assert abs((y == 0).double().mean() - p) < 5 * spread
    assert abs(y.mean() - 1) < 5 * spread / (1 - p)


@pytest.mark.parametrize("axis", range(4))
def test_every_index_of_every_axis_has_the_same_chance(axis):
    y = kept(0.5, shape=(40, 40, 10, 10)) == 0
    others = [i for i in range(4) if i != axis]
    rates = y.double().mean(dim=others)
    spread = (0.25 / (y.numel() / len(rates))) ** 0.5
    assert (rates - 0.5).abs().max() < 5 * spread
    assert (rates - 0.5).abs().max() > 0.01 * spread  # random, not a pattern that repeats


@pytest.mark.parametrize(
    "other", [{"key": 1235}, {"key": 1234 + 2**32}, {"number": 1}, {"number": 17, "key": 99}]
)
def test_keys_and_layers_are_independent(other):
    one, another = kept(0.5) == 0, kept(0.5, **other) == 0
    both = (one & another).double().mean()
    assert abs(both - 0.25) < 5 * (0.25 * 0.75 / one.numel()) ** 0.5


@pytest.mark.parametrize("step", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_neighbours_are_independent(step):
    one = kept(0.5, shape=(32, 16, 8, 8)) == 0
    another = torch.roll(one, step, dims=(0, 1, 2, 3))
    assert abs((one & another).double().mean() - 0.25) < 5 * (0.1875 / one.numel()) ** 0.5


def test_the_same_key_drops_the_same():
    assert torch.equal(kept(), kept())


@pytest.mark.parametrize("per_channel", [False, True])
def test_slices_drop_what_the_whole_drops(per_channel):
    whole = kept(per_channel=per_channel)
    state = Sliced(Layout.of(Partition((2, 0, 5))))
    for rank in range(3):
        piece = state.layout.slices(rank)[0]
        mine = kept(per_channel=per_channel, state=state, rank=rank)
        assert torch.equal(mine, whole[:, piece])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout1d(0.4), (200, 30, 5)),
        (nn.Dropout2d(0.4), (200, 30, 3, 4)),
        (nn.Dropout3d(0.4), (200, 30, 2, 1, 3)),
    ],
)
def test_whole_channels_of_a_sample_are_dropped(layer, shape):
    from mpi4py import MPI

    call = Call(layer, (Ref("x"),), {}, {"x": Value(sizes=(shape,))}, Value(sizes=(shape,)))
    run = OperatorRun(call, Flow({"x": FULL}, FULL), None, FULL)
    local = rule_for(layer).local(run, Group(MPI.COMM_SELF), torch.device("cpu"))
    (dropout,) = keyed_dropouts(local)
    dropout.mask.key = 7
    y = local(torch.ones(shape)).flatten(2)
    assert ((y == 0).all(dim=2) | (y != 0).all(dim=2)).all()
    rate = (y[:, :, 0] == 0).double().mean()
    assert abs(rate - 0.4) < 5 * (0.24 / 6000) ** 0.5


def test_all_or_nothing():
    assert torch.equal(kept(p=0.0), torch.ones(64, 7, 9, 5, dtype=torch.float64))
    assert torch.equal(kept(p=1.0), torch.zeros(64, 7, 9, 5, dtype=torch.float64))


def test_the_gradient_is_dropped_alike():
    layer = nn.Dropout(0.5)
    KeyedDropout(layer, Mask(False, FULL, 0))
    x = torch.ones(8, 9, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_evaluation_changes_nothing():
    layer, x = nn.Dropout(0.5), torch.ones(3, 4)
    KeyedDropout(layer, Mask(False, FULL, 0))
    assert layer.eval()(x) is x
