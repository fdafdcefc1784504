"""LARS, LAMB and the loss scaler: what they measure is of whole tensors, on every rank."""

import copy
import json
import math

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import WEIGHTS, batch, rank_loss, world_size
from helpers.optimizing import IMAGES, KINDS, MIXED, Pair, network, train
from helpers.saving import shared
from helpers.works import works
from hetmp.core.errors import HetmpError
from hetmp.optim import LAMB, LARS, GradScaler, clip_grad_norm_

pytestmark = pytest.mark.mpi


# --- LARS and LAMB, as their papers have them, on whole tensors ----------------------------------


def lars(module, lr, momentum=0.0, weight_decay=0.0, trust=0.001, eps=1e-8, exclude_1d=True):
    """A function that does a step."""
    velocity = {p: torch.zeros_like(p) for p in module.parameters()}

    def step():
        for p, v in velocity.items():
            if p.grad is None:
                continue
            local, decay = 1.0, weight_decay
            if exclude_1d and p.dim() <= 1:
                decay = 0.0
            elif p.norm() > 0 and p.grad.norm() > 0:
                local = trust * p.norm() / (p.grad.norm() + decay * p.norm() + eps)
            v.copy_(momentum * v + lr * local * (p.grad + decay * p.detach()))
            p.data -= v

    return step


def lamb(module, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, exclude_1d=True):
    """A function that does a step."""
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in module.parameters()}
    count = 0

    def step():
        nonlocal count
        count += 1
        for p, (m, v) in moments.items():
            if p.grad is None:
                continue
            m.copy_(betas[0] * m + (1 - betas[0]) * p.grad)
            v.copy_(betas[1] * v + (1 - betas[1]) * p.grad**2)
            mean, square = m / (1 - betas[0] ** count), v / (1 - betas[1] ** count)
            u, ratio = mean / (square.sqrt() + eps), 1.0
            if not (exclude_1d and p.dim() <= 1):
                u = u + weight_decay * p.detach()
                if p.norm() > 0 and u.norm() > 0:
                    ratio = p.norm() / u.norm()
            p.data -= lr * ratio * u

    return step


OPTIMIZERS = {
    "lars": (LARS, lars, {"lr": 0.1, "weight_decay": 0.01, "trust": 0.3}),
    "lars with momentum": (LARS, lars, {"lr": 0.1, "momentum": 0.9, "trust": 0.1}),
    "lars on all": (
        LARS,
        lars,
        {"lr": 0.3, "weight_decay": 0.1, "trust": 0.1, "exclude_1d": False, "eps": 0.1},
    ),
    "lamb": (LAMB, lamb, {"lr": 0.01, "weight_decay": 0.1}),
    "lamb on all": (LAMB, lamb, {"lr": 0.01, "exclude_1d": False, "betas": (0.5, 0.6)}),
}


def lean() -> nn.Sequential:
    """All of it is cut: a rank with a share of 0 has no number of it."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, bias=False),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(112, 5),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layerwise_optimizers(name, kind):
    pair = Pair(kind, ("filters",) if kind == "70:25:5" else MIXED)
    make, reference, options = OPTIMIZERS[name]
    train(pair, make(pair.model, **options), reference(pair.reference, **options))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layerwise_optimizers_where_there_is_nothing_to_do(name):
    """Frozen parameters, all zeros, empty slices without gradients."""
    pair = Pair("one zero", frozen=["3.weight"])
    with torch.no_grad():
        for module in (pair.model, pair.reference):
            module.get_parameter("5.weight").zero_()  # its norm, and the gradient before it, is 0
    make, reference, options = OPTIMIZERS[name]
    mine, step = make(pair.model, **options), reference(pair.reference, **options)
    for number in range(3):
        pair.backward(number)
        pair.forget_empty_gradients()
        mine.step()
        step()
    pair.finish()


class Tied(nn.Module):
    """One weight in two layers, one layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.first, self.second = nn.Linear(96, 96), nn.Linear(96, 96)
        self.second.weight = self.first.weight

    def forward(self, x):
        x = self.again(self.again(self.conv(x)).tanh()).flatten(1)
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("name", ["lars with momentum", "lamb"])
def test_tied_parameters_count_once(name):
    pair = Pair("1:2:3", None, Tied)
    make, reference, options = OPTIMIZERS[name]
    train(pair, make(pair.model, **options), reference(pair.reference, **options), steps=3)


def test_groups_with_options_of_their_own():
    """Rates and decay by group, a schedule over the rates, a closure."""
    pair = Pair("70:25:5", MIXED)
    names = [name for name, _ in pair.reference.named_parameters()]
    parts = [names[:2], names[2:]]
    mine = LARS(
        pair.model,
        0.1,
        trust=0.2,
        params=[
            {"params": [pair.model.get_parameter(name) for name in part], "weight_decay": decay}
            for part, decay in zip(parts, (0.1, 0.0), strict=True)
        ],
    )
    schedule = torch.optim.lr_scheduler.StepLR(mine, 1, 0.5)
    for number in range(4):
        pair.backward(number)
        for part, decay in zip(parts, (0.1, 0.0), strict=True):
            chosen = nn.ParameterList(pair.reference.get_parameter(name) for name in part)
            lars(chosen, 0.1 * 0.5**number, trust=0.2, weight_decay=decay)()
        assert mine.step(lambda: torch.is_grad_enabled()) is True
        schedule.step()
    pair.finish()


def test_the_norms_of_what_all_hold_are_rank_0s():
    """Else replicas whose devices round in unlike ways would drift apart."""
    pair = Pair("equal", ("whole",))
    pair.backward(0)
    if pair.group.rank:  # as on a device that rounds in another way
        for p in pair.model.parameters():
            p.grad.mul_(1 + 1e-3 * pair.group.rank)
    given = [p.grad.clone() for p in pair.model.parameters()]
    before = [p.detach().clone() for p in pair.model.parameters()]
    LARS(pair.model, 1.0, exclude_1d=False).step()
    # (w - w') / g = lr * trust * ‖w‖ / ‖g‖ has no rank's own norm in it.
    ratios = [
        ((old - p) / g).mean().item()
        for old, p, g in zip(before, pair.model.parameters(), given, strict=True)
    ]
    everyones = pair.group.allgather(torch.tensor(ratios, dtype=torch.float64).numpy())
    assert abs(everyones / everyones[0] - 1).max() < 1e-9


def test_norms_do_not_overflow_in_float32():
    """Squares of 1e25 are beyond float32, and are summed in float64."""
    module = network().float()
    model = hetmp.slice_model(module, WEIGHTS["1:2:3"](world_size()))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e25)
    whole = copy.deepcopy(module).double()
    for p in whole.parameters():
        p.grad = torch.full_like(p, 1e25)
    LARS(model, 1.0).step()
    lars(whole, 1.0)()
    merged = hetmp.merge_model(model)
    for name in ("0.weight", "3.weight", "5.weight"):
        expected = whole.get_parameter(name).detach().float()
        assert torch.allclose(merged[name], expected, rtol=1e-5)
        assert not torch.equal(merged[name], module.get_parameter(name))


@pytest.mark.parametrize("name", ["lars with momentum", "lamb"])
def test_layerwise_state_is_saved_and_loaded(name, tmp_path):
    """Two steps, saved, loaded into other slices, two more: those of the unsliced network."""
    path = shared(tmp_path) / "two.h5"
    make, reference, options = OPTIMIZERS[name]
    first = Pair("one zero")
    mine, step = make(first.model, **options), reference(first.reference, **options)
    for number in range(2):
        first.backward(number)
        first.forget_empty_gradients()
        mine.step()
        step()
    hetmp.save(path, first.model, mine)
    second = Pair("70:25:5", MIXED)
    mine = make(second.model, **{**options, "lr": 123.0})
    hetmp.load(path, second.model, mine)
    assert mine.param_groups[0]["lr"] == options["lr"]
    second.reference = second.differences.reference = first.reference
    for number in range(2, 4):
        second.backward(number)
        mine.step()
        step()
    second.finish()


@pytest.mark.parametrize("make", [LARS, LAMB])
def test_parameters_of_another_model_are_refused(make):
    pair = Pair("equal")
    with pytest.raises(HetmpError, match=f"{make.__name__} was given a parameter that is not"):
        make(pair.model, 0.1, params=pair.reference.parameters())
    with pytest.raises(
        HetmpError, match=f"{make.__name__} takes a model made by hetmp.slice_model"
    ):
        make(pair.reference, 0.1)


# --- the loss scaler ------------------------------------------------------------------------------


SCALED = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "fused sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, fused=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


@works("`GradScaler`")
@pytest.mark.parametrize(
    ("name", "kind", "unscale"),
    [
        ("sgd", "70:25:5", True),
        ("sgd", "one zero", False),
        ("sgd", "all on last", False),
        ("adam", "all on last", True),
        ("adam", "70:25:5", False),
        ("fused sgd", "one zero", True),
        ("fused sgd", "70:25:5", False),
        ("fused sgd", "all on last", False),
    ],
)
def test_all_ranks_skip_a_step_or_none(name, kind, unscale):
    """Overflow in one rank's slice: nobody steps, every scale falls; then all goes on."""
    pair = Pair(kind, build=lean if kind == "all on last" else network)
    options = {"init_scale": 1024.0, "growth_interval": 2}
    mine = GradScaler(pair.model, "cpu", **options)
    expected = torch.amp.GradScaler("cpu", **options)
    optimizers = [SCALED[name](pair.model), SCALED[name](pair.reference)]
    scales = []
    for step, wrong in enumerate([None, math.inf, None, math.nan, None, None, None]):
        pair.backward(step, mine.scale, expected.scale)
        pair.forget_empty_gradients()
        if wrong is not None:
            pair.reference.get_parameter("0.weight").grad[-1] = wrong
            weight = pair.model.get_parameter("0.weight")
            has = pair.group.allgather(torch.tensor([weight.numel()]).numpy()).ravel().nonzero()[0]
            if pair.group.rank == has[-1]:
                weight.grad.as_subclass(torch.Tensor)[-1] = wrong
        before = hetmp.merge_model(pair.model)
        for scaler, optimizer in zip((mine, expected), optimizers, strict=True):
            if unscale:
                scaler.unscale_(optimizer)
                if scaler is mine:
                    clip_grad_norm_(pair.model, 0.05)
                else:
                    nn.utils.clip_grad_norm_(pair.reference.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
        after = hetmp.merge_model(pair.model)
        stayed = all(torch.equal(after[n], before[n]) for n, _ in pair.model.named_parameters())
        assert stayed == (wrong is not None)
        assert mine.get_scale() == expected.get_scale()
        scales.append(mine.get_scale())
    assert scales == [1024, 512, 512, 256, 256, 512, 512]
    pair.finish()


@pytest.mark.parametrize("make", [LARS, LAMB])
def test_a_rank_without_any_gradient_takes_part(make):
    pair = Pair("all on last", build=lean)
    reference = lars if make is LARS else lamb
    mine, step = make(pair.model, 0.1), reference(pair.reference, 0.1)
    for number in range(2):
        pair.backward(number)
        pair.forget_empty_gradients()
        mine.step()
        step()
    pair.finish()


def test_a_scaler_of_a_layerwise_optimizer():
    pair = Pair("one zero")
    scaler = GradScaler(pair.model, "cpu", init_scale=64.0)
    mine, step = LAMB(pair.model, 0.1), lamb(pair.reference, 0.1)
    for number in range(3):
        pair.backward(number, scaler.scale)
        scaler.step(mine)
        scaler.update()
        step()
    pair.finish()


def test_a_scalers_state_is_torchs():
    pair = Pair("equal")
    scaler = GradScaler(pair.model, "cpu", init_scale=8.0, growth_interval=1)
    optimizer = SCALED["sgd"](pair.model)
    pair.backward(0, scaler.scale)
    scaler.step(optimizer)
    scaler.update()
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert other.get_scale() == 16.0
    again = GradScaler(pair.model, "cpu")
    again.load_state_dict(other.state_dict())
    assert again.get_scale() == 16.0


def test_a_disabled_scaler_does_nothing():
    pair = Pair("one zero")
    scaler = GradScaler(pair.model, "cpu", enabled=False)
    mine, expected = SCALED["sgd"](pair.model), SCALED["sgd"](pair.reference)
    for number in range(2):
        pair.backward(number, scaler.scale)
        scaler.step(mine)
        scaler.update()
        expected.step()
    assert scaler.get_scale() == 1.0
    pair.finish()


def test_scalers_that_cannot_be():
    pair = Pair("equal")
    with pytest.raises(HetmpError, match=r"GradScaler takes a model made by hetmp\.slice_model"):
        GradScaler(pair.reference, "cpu")
    with pytest.raises(HetmpError, match=r"^GradScaler: The growth factor must be > 1"):
        GradScaler(pair.model, "cpu", growth_factor=0.5)


@pytest.mark.mpi(min_size=2)
def test_scalers_that_differ_between_the_ranks():
    """As where one rank has no GPU, and torch disables its scaler."""
    pair = Pair("equal")
    last = pair.group.size - 1
    with pytest.raises(HetmpError, match=f"enabled is 1 on rank 0 and 0 on rank {last}: give"):
        GradScaler(pair.model, "cpu", enabled=pair.group.rank != last)
    with pytest.raises(HetmpError, match=f"init_scale is 2 on rank 0 and 4 on rank {last}: give"):
        GradScaler(pair.model, "cpu", init_scale=4.0 if pair.group.rank == last else 2.0)


def test_overflow_under_autocast():
    """Rounded to bfloat16 and scaled beyond float32: skipped until the scale has fallen."""
    model = hetmp.slice_model(network().float(), WEIGHTS["one zero"](world_size()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = GradScaler(model, "cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
    steps = []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(batch(IMAGES, dtype=torch.float32))
        scaler.scale(100 * rank_loss(output.double(), model.hetmp.group.rank).float()).backward()
        before = hetmp.merge_model(model)
        scaler.step(optimizer)
        scaler.update()
        after = hetmp.merge_model(model)
        steps.append(not torch.equal(before["5.weight"], after["5.weight"]))
    assert steps == [False, True, True]
    assert all(value.isfinite().all() for value in after.values())
