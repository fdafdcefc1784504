"""Random numbers of what is computed whole: one key, the same on ranks of any device and dtype."""

import contextlib
import random
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hetmp
from helpers.comparison import WEIGHTS, batch, world_size
from hetmp.ops import Seeds

CPU = torch.device("cpu")
BF16 = 2**-7
"""The rounding of bfloat16, with some room."""


# --- every way to draw, in one process


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.4)


def chosen(x: Tensor) -> Tensor:
    weights = x.detach().abs()[:, :, 0, 0] + 1
    return x * torch.multinomial(weights, 5)[:, :, None, None]


def recurrent(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    layer = nn.GRU(5, 4, 2, dropout=0.5).to(x.dtype)
    torch.manual_seed(4)
    return layer(x.flatten(0, 1))[0]


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "native_dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "dropout in place": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.3, True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu in place": lambda x: F.rrelu(x * 1, training=True, inplace=True),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
    "bernoulli": lambda x: x * torch.bernoulli(x.detach().sigmoid().bfloat16().to(x.dtype)),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.3),
    "rand": lambda x: x + torch.rand(x.shape, dtype=x.dtype),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn_like": lambda x: x + torch.randn_like(x),
    "randn_like, channels last": lambda x: x + torch.randn_like(
        x, memory_format=torch.channels_last
    ),
    "randint_like": lambda x: x + torch.randint_like(x, 9),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "normal": lambda x: x + torch.normal(x.detach(), 1.0),
    "uniform_": lambda x: x + torch.empty_like(x).uniform_(-1, 1),
    "exponential_": lambda x: x + torch.empty_like(x).exponential_(),
    "random_": lambda x: x + torch.empty_like(x).random_(9),
    "poisson": lambda x: x + torch.poisson(x.detach().abs()),
    "multinomial": chosen,
    "randperm": lambda x: x[torch.randperm(len(x))],
    "fractional_max_pool": lambda x: F.fractional_max_pool2d(x, 2, output_size=2),
    "attention": attention,
    "recurrent": recurrent,
    "a layer": lambda x: nn.Sequential(nn.AlphaDropout(0.2), nn.RReLU())(x),
}  # fmt: skip


def drawn(draw: Callable[[Tensor], Tensor], x: Tensor, on_cpu: bool) -> tuple[Tensor, Tensor]:
    """The result and the gradient of its sum."""
    torch.manual_seed(1)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    before = torch.get_rng_state()
    with Seeds(12345, on_cpu).seeded("step", CPU, draw, own=False):
        result = draw(x)
    assert torch.equal(torch.get_rng_state(), before)
    result.float().square().sum().backward()
    assert result.dtype == x.dtype and x.grad is not None
    return result.detach().float(), x.grad.float()


def near(one: Tensor, other: Tensor, tolerance: float) -> None:
    assert one.shape == other.shape
    assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("name", DRAWS)
def test_unlike_ranks_draw_the_same(name):
    """As float32 on the CPU in row-major order, whatever the dtype and the order in memory."""
    x = batch((6, 5, 4, 5), dtype=torch.float32).bfloat16().float()  # 600 values, one bit pattern
    wanted, gradient = drawn(DRAWS[name], x, on_cpu=True)
    plain, _ = drawn(DRAWS[name], x, on_cpu=False)
    if "rrelu" not in name and name != "a layer" and name != "randn_like, channels last":
        near(wanted, plain, 1e-6)  # nothing changes for who draws so anyway
    turned = x.contiguous(memory_format=torch.channels_last)
    # What a function itself makes in the order of its operand is drawn in row-major order, too.
    if name != "recurrent":
        near(drawn(DRAWS[name], turned, on_cpu=True)[0], wanted, 1e-6)
    result, its_gradient = drawn(DRAWS[name], x.bfloat16(), on_cpu=True)
    near(result, wanted, BF16)
    near(its_gradient, gradient, 2 * BF16)


def test_ranks_drop_the_same_whichever_kernel_drops():
    """On a GPU F.dropout is native_dropout."""
    x = torch.ones(7, 11)
    one, other = (drawn(DRAWS[name], x, True)[0] for name in ("dropout", "native_dropout"))
    assert torch.equal(one, other)


def test_double_precision_and_a_generator_of_ones_own_stay():
    x = torch.zeros(600, dtype=torch.float64)
    with Seeds(1, True).seeded("step", CPU, torch.randn_like, own=False):
        first = torch.randn_like(x)
    torch.manual_seed(zlib.crc32(b"1 step"))
    assert torch.equal(first, torch.randn_like(x)) and first.dtype == torch.float64
    mine = [torch.Generator().manual_seed(5) for _ in range(2)]
    with Seeds(1, True).seeded("step", CPU, torch.randn_like, own=False):
        inside = torch.empty(600, dtype=torch.bfloat16).normal_(generator=mine[0])
    assert torch.equal(inside, torch.empty(600, dtype=torch.bfloat16).normal_(generator=mine[1]))


def test_pythons_and_numpys_generators_are_seeded_for_a_users_code():
    def numbers() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    sequences = []
    for own in (7, 8):
        random.seed(own)
        np.random.seed(own)  # noqa: NPY002
        torch.manual_seed(own)
        expected = numbers()
        random.seed(own)
        np.random.seed(own)  # noqa: NPY002
        torch.manual_seed(own)
        with Seeds(3).seeded("step", CPU, numbers, own=True):
            sequences.append(numbers())
        assert numbers() == expected
    assert sequences[0] == sequences[1]


@pytest.mark.parametrize("draw", [torch.rand_like, torch.abs, lambda x: x * random.random()])
def test_a_key_that_nobody_drew_with_is_taken_back(draw):
    before = torch.get_rng_state()
    torch.rand(1)
    after = torch.get_rng_state()
    seeds = Seeds(3, before=before)
    for _ in range(2):
        with seeds.seeded("step", CPU, draw, own=True):
            draw(torch.ones(3))
    seeds.close()
    assert torch.equal(torch.get_rng_state(), before if draw is torch.abs else after)


# --- on ranks


@torch.fx.wrap
def drop_path(x: Tensor, training: bool) -> Tensor:
    """Whole samples are dropped, in training."""
    return x * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.5) if training else x


@torch.fx.wrap
def noisy(x: Tensor) -> Tensor:
    """Noise in any mode, from each of the three generators."""
    mask = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.3
    return x * mask + random.random() + np.random.rand()  # noqa: NPY002


class Noise(torch.autograd.Function):
    """An operation with a backward pass of its own, which draws."""

    @staticmethod
    def forward(ctx, x):
        return x * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.3)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@hetmp.leaf
class Leaf(nn.Module):
    """A part that draws in any mode."""

    def forward(self, x):
        return noisy(x)


@torch.fx.wrap
def doubled(x: Tensor) -> Tensor:
    """A helper that draws nothing."""
    return 2 * x


class Gated(nn.Module):
    """Two layers of three ranks' channels, one behind a function, which looks its helper up."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.function(self.a(x)) * self.c(x)


class Path(Gated):
    def forward(self, x):
        return drop_path(self.a(x), self.training) * self.c(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a helper": lambda: Path(None),
    "a helper in any mode": lambda: Gated(lambda x: noisy(x)),
    "an autograd function": lambda: Gated(lambda x: Noise.apply(x)),
    "a leaf": lambda: Gated(Leaf()),
}


def unlike_seeds(model: hetmp.SlicedModel) -> None:
    own = 7 + model.hetmp.group.rank
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own)  # noqa: NPY002


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_users_code_draws_is_the_same_on_every_rank(name, training):
    """With unlike seeds on the ranks: no sample is dropped in a part of its channels only."""
    from mpi4py import MPI

    torch.manual_seed(0)
    model = hetmp.slice_model(NETWORKS[name](), WEIGHTS["70:25:5"](world_size())).train(training)
    alone = hetmp.slice_model(NETWORKS[name](), [1.0], MPI.COMM_SELF).train(training)
    alone.load_state_dict(hetmp.merge_model(model))
    x = batch((64, 3, 6, 6), dtype=torch.float32)
    unlike_seeds(model)
    first, second = model(x).detach(), model(x).detach()
    torch.manual_seed(7)
    wanted = alone(x).detach()
    outputs = MPI.COMM_WORLD.allgather(first)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert torch.allclose(first, wanted, atol=1e-5)
    gone = (first == 0).flatten(2).all(2)
    assert not (gone.any(1) & ~gone.all(1)).any()
    draws = training or name != "a helper"
    assert torch.equal(first, second) != draws
    if draws and name in ("a helper", "an autograd function"):
        assert 10 < int(gone.all(1).sum()) < 54


@pytest.mark.mpi
def test_an_evaluation_that_draws_nothing_leaves_the_generator():
    """So a curve does not depend on how often one evaluates; where it draws, it goes on."""
    for function, draws in ((lambda x: doubled(x), False), (lambda x: noisy(x), True)):
        model = hetmp.slice_model(Gated(function), WEIGHTS["1:2:3"](world_size())).eval()
        before = torch.get_rng_state()
        model(batch((2, 3, 6, 6), dtype=torch.float32))
        assert torch.equal(torch.get_rng_state(), before) != draws


class Whole(nn.Module):
    """Draws from what every rank computes for itself."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.draw = nn.Conv2d(3, 8, 3, padding=1), draw

    def forward(self, x):
        return self.draw(self.a(x))


STAND_INS = {
    "randn_like": lambda x: x + torch.randn_like(x),
    "rand_like": lambda x: x + torch.rand_like(x),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.4, True),
    "a leaf": hetmp.leaf(nn.Sequential(nn.RReLU(), nn.Dropout(0.3), nn.AlphaDropout(0.3))),
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", STAND_INS)
def test_ranks_of_unlike_precision_draw_the_same(name):
    """The stand-in for a GPU beside a CPU: rank 0 computes in bfloat16."""
    from mpi4py import MPI

    torch.manual_seed(0)
    net, ranks = Whole(STAND_INS[name]), world_size()
    plan = hetmp.plan_from_weights(hetmp.read_graph(net), WEIGHTS["1:2:3"](ranks))
    plan = plan.with_layer("a", scheme="whole")
    model = hetmp.slice_model(net, plan, tuning=hetmp.Tuning(wire="float32"))
    unlike_seeds(model)
    rank = model.hetmp.group.rank
    cast = torch.autocast("cpu", torch.bfloat16) if rank == 0 else contextlib.nullcontext()
    for side in (6, 5):  # 600 numbers: 16 does not divide them, and torch draws the rest otherwise
        x = batch((3, 3, side, side), dtype=torch.float32)
        with cast:
            output = model(x).float()
        output.square().mean().backward()
        outputs = MPI.COMM_WORLD.allgather(output.detach())
        for other in outputs[1:]:
            near(other, outputs[0], BF16)


@pytest.mark.mpi(min_size=2)
def test_unlike_devices_draw_on_the_cpu(monkeypatch):
    """Which each rank is, the ranks tell each other whenever a key is drawn."""
    from hetmp.slicing import meeting

    model = hetmp.slice_model(Gated(lambda x: noisy(x)), WEIGHTS["1:2:3"](world_size()))
    rank = model.hetmp.group.rank

    def on_cpu() -> bool:
        _, seeds, _ = model.hetmp.start(model, 0, (batch((3, 3, 6, 6)),), {})
        assert seeds is not None
        return seeds._on_cpu

    assert not on_cpu()
    monkeypatch.setattr(meeting, "generator_name", lambda device: "cpu" if rank else "a GPU")
    assert on_cpu()
    monkeypatch.setattr(meeting, "generator_name", lambda device: "a GPU")
    assert not on_cpu()
