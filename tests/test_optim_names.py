"""Optimizers by name on slices, and those that are refused there."""

import copy
import math

import pytest
import torch

import hetmp
from helpers.comparison import batch, pick_weights, rank_loss, seeded, world_size
from helpers.optimizing import IMAGES, KINDS, MIXED, Pair, network, train
from hetmp.core.errors import HetmpError
from hetmp.optim import LAMB, LARS, OPTIMIZERS, REFUSED, make_optimizer
from hetmp.slicing.optimizer_guard import reason_against

pytestmark = pytest.mark.mpi

TORCHS = {
    "adadelta": (torch.optim.Adadelta, {"rho": 0.8}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.1}),
    "adam": (torch.optim.Adam, {"betas": [0.8, 0.95], "amsgrad": True}),
    "adamax": (torch.optim.Adamax, {"weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "asgd": (torch.optim.ASGD, {"t0": 2.0}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {"betas": [0.5, 0.6]}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True, "momentum": 0.5}),
    "rprop": (torch.optim.Rprop, {"etas": [0.4, 1.3]}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}


def sliced(build=network):
    return hetmp.slice_model(seeded(build), pick_weights(0))


def test_every_name_is_tried_here():
    assert set(OPTIMIZERS) == {*TORCHS, "lars", "lamb"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TORCHS)
def test_elementwise_optimizers(name, kind):
    """By name, on slices: the weights that torch's own gives the unsliced network."""
    pair = Pair(kind, MIXED if kind == "1:2:3" else ("filters",))
    make, options = TORCHS[name]
    mine = make_optimizer(pair.model, name.title(), 0.01, options)
    assert type(mine) is make
    tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    train(pair, mine, make(pair.reference.parameters(), lr=0.01, **tuples))


def test_hetmps_own_by_name():
    model = sliced()
    lars = make_optimizer(model, "LARS", 0.1, {"momentum": 0.9})
    lamb = make_optimizer(model, "lamb", 0.1, {"betas": [0.8, 0.9]})
    assert (type(lars), lars.defaults["momentum"]) == (LARS, 0.9)
    assert (type(lamb), lamb.defaults["betas"]) == (LAMB, (0.8, 0.9))


@pytest.mark.parametrize(
    ("name", "lr", "options", "told"),
    [
        ("adamx", 0.1, {}, "unknown optimizer 'adamx': did you mean 'adamax'"),
        (
            "sgd",
            0.1,
            {"momentun": 0.9},
            "unknown option of sgd 'momentun': did you mean 'momentum'",
        ),
        ("sgd", 0.1, {"lr": 1.0}, "unknown option of sgd 'lr'"),
        ("lars", 0.1, {"params": None}, "unknown option of lars 'params'"),
        ("sgd", -1.0, {"momentum": 0.9}, "sgd: lr = -1.0 is refused"),
        ("sgd", "fast", {}, "sgd: lr = 'fast' is refused"),
        ("sgd", 0.1, {"weight_decay": 0.1, "momentum": -0.9}, "sgd: momentum = -0.9 is refused"),
        ("sgd", 0.1, {"momentum": "0.9"}, "sgd: momentum is a number, got '0.9'"),
        ("sgd", 0.1, {"nesterov": 1}, "sgd: nesterov is true or false, got 1"),
        ("sgd", 0.1, {"nesterov": True}, "sgd: nesterov = True is refused: Nesterov momentum"),
        ("adam", 0.1, {"betas": [0.9]}, r"adam: betas is 2 numbers, got \(0.9,\)"),
        ("adam", 0.1, {"betas": 0.9}, "adam: betas is 2 numbers, got 0.9"),
        ("adam", 0.1, {"betas": [0.9, 1.5]}, r"adam: betas = \(0.9, 1.5\) is refused"),
        (
            "sgd",
            0.1,
            {"fused": True, "foreach": True},
            "sgd: fused = True, foreach = True: .*together",
        ),
        ("adam", 0.1, {"differentiable": True}, "adam: differentiable=True needs"),
        ("lars", 0.1, {"trust": -1.0}, "lars: trust is 0 or more, got -1.0"),
        ("lars", math.nan, {}, "lars: lr is 0 or more, got nan"),
        ("lamb", 0.1, {"betas": [0.9, 1.0]}, r"lamb: betas are two numbers in \[0, 1\), got"),
        ("Muon", 0.1, {}, "muon is wrong on slices: it makes a whole matrix orthogonal.* use adam"),
        ("adafactor", 0.1, {}, "adafactor is wrong on slices: .* use adamw or adam"),
    ],
)
def test_mistakes_are_told(name, lr, options, told):
    with pytest.raises(HetmpError, match=told):
        make_optimizer(sliced(), name, lr, options)


def test_options_that_only_change_how_pass_through():
    for options in ({"foreach": True}, {"foreach": False}, {"fused": True}):
        pair = Pair("one zero")
        mine = make_optimizer(pair.model, "sgd", 0.1, {"momentum": 0.9, **options})
        assert options.items() <= mine.param_groups[0].items()
        train(pair, mine, torch.optim.SGD(pair.reference.parameters(), lr=0.1, momentum=0.9))


# --- in a user's own loop -------------------------------------------------------------------------


class Shampoo(torch.optim.SGD):
    """Somebody else's, by its name."""


class MyShampoo(Shampoo):
    """Made from it."""


def stepped(module, make):
    """The module after a backward pass and a step."""
    optimizer = make(module.parameters(), lr=0.1)
    rank_loss(module(batch(IMAGES)), 0).backward()
    optimizer.step()
    return module


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("make", [torch.optim.Adafactor, Shampoo, MyShampoo])
@pytest.mark.parametrize("weights", ["even", "one rank has all"])
def test_a_wrong_optimizer_is_refused_on_slices(make, weights):
    """On every rank, one without channels included, and before it changes anything."""
    ranks = world_size()
    shares = [1.0] * ranks if weights == "even" else [1.0] + [0.0] * (ranks - 1)
    model = hetmp.slice_model(seeded(network), shares)
    before = hetmp.merge_model(model)
    with pytest.raises(HetmpError, match=rf"^{make.__name__} is wrong on the slices of '0.weight'"):
        stepped(model, make)
    after = hetmp.merge_model(model)
    assert all(torch.equal(after[name], before[name]) for name, _ in model.named_parameters())
    with pytest.raises(HetmpError, match=rf"^{make.__name__} is wrong on the slices of"):
        stepped(copy.deepcopy(model), make)


@pytest.mark.parametrize("make", [torch.optim.Adafactor, Shampoo])
def test_a_wrong_optimizer_is_right_elsewhere(make):
    """On an unsliced module beside a sliced one, and where every rank holds all."""
    sliced()
    module = seeded(network)
    before = copy.deepcopy(module.state_dict())
    stepped(module, make)
    assert not any(torch.equal(p, before[name]) for name, p in module.named_parameters())
    pair = Pair("equal", ("whole",))
    train(pair, make(pair.model.parameters(), lr=0.1), make(pair.reference.parameters(), lr=0.1))


def test_one_rank_holds_all():
    """Its slices are the whole, so nothing is refused."""
    from mpi4py import MPI

    model = hetmp.slice_model(seeded(network), [1.0], MPI.COMM_SELF)
    before = hetmp.merge_model(model)
    stepped(model, torch.optim.Adafactor)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_hetmps_own_are_not_refused():
    assert {"LARS", "LAMB"} <= REFUSED.keys()
    for name in ("lars", "lamb"):
        model = sliced()
        optimizer = make_optimizer(model, name, 0.1, {})
        rank_loss(model(batch(IMAGES)), 0).backward()
        optimizer.step()
        assert reason_against(type(optimizer)) is None


def test_every_refusal_has_a_remedy():
    assert all("; use " in reason for reason in REFUSED.values())
    elementwise = {make.__name__ for make, _ in TORCHS.values()}
    assert not elementwise & REFUSED.keys()
    others = {
        name
        for name, found in vars(torch.optim).items()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    }
    assert others - elementwise - {"Optimizer"} <= REFUSED.keys()  # none is forgotten
