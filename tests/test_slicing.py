"""Whole networks, sliced in every mixture of schemes and shares, equal the unsliced ones."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import (
    MIXING,
    SCHEMES,
    WEIGHTS,
    adam,
    compare_training,
    make_plan,
    pick_weights,
    seeded,
    sgd,
    world_size,
)
from helpers.works import works
from hetmp import models

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 8, 8)


def chain() -> nn.Sequential:
    """Prime channel counts, a convolution before a norm, two fully connected layers."""
    features = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(7, 13, 3, padding=1, bias=False),
        nn.BatchNorm2d(13),
        nn.SiLU(),
        nn.Conv2d(13, 5, 3),
        nn.ReLU(),
    )
    classifier = nn.Sequential(nn.Linear(20, 11), nn.PReLU(), nn.Linear(11, 4))
    return nn.Sequential(
        OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier)
    )


@pytest.mark.every_size
@pytest.mark.parametrize("name", WEIGHTS)
def test_default_plan(name):
    compare_training(seeded(chain), WEIGHTS[name](world_size()), IMAGES, steps=5)


@pytest.mark.parametrize("number", range(len(SCHEMES)), ids=["-".join(x) for x in SCHEMES])
def test_mixed_schemes(number):
    """With momentum, or with Adam; with sizes known beforehand, or not."""
    module = seeded(chain)
    plan = make_plan(module, pick_weights(number), SCHEMES[number])
    optimizer = {"optimizer": adam} if number % 2 else {}
    compare_training(module, plan, IMAGES, steps=5, example=number % 3 == 0, **optimizer)


@works("elementwise `torch.optim`")
@pytest.mark.parametrize("number", range(2))
def test_adam_with_default_plan(number):
    """A bias before a norm has no gradient but rounding, which Adam blows up."""
    compare_training(seeded(chain), pick_weights(3 * number), IMAGES, steps=5, optimizer=adam)


@pytest.mark.every_size
@pytest.mark.parametrize("schemes", [("filters",), ("filters", "inputs"), ("inputs", "filters")])
def test_every_layer_cut_in_its_own_way(schemes):
    """Counts that follow no weights: another rank has nothing in every layer."""
    ranks = world_size()
    module = seeded(chain)
    plan = make_plan(module, [1] * ranks, schemes)
    for number, layer in enumerate(plan.layers):
        weights = [0.0 if rank == number % ranks else 1.0 + rank for rank in range(ranks)]
        counts = hetmp.apportion(layer.channels, weights if ranks > 1 else [1]).counts
        plan = plan.with_layer(layer.name, counts=counts)
    compare_training(module, plan, IMAGES)


@pytest.mark.every_size
@pytest.mark.parametrize("schemes", [("filters",), ("inputs",), ("filters", "inputs")])
def test_more_ranks_than_channels(schemes):
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.Conv2d(2, 1, 2),
            nn.PReLU(1),
            nn.ConvTranspose2d(1, 3, 2),
            nn.Flatten(),
            nn.Linear(48, 2),
        )
    )
    plan = make_plan(module, [1] * world_size(), schemes)
    compare_training(module, plan, (3, 1, 6, 6), example=True)


class Named(nn.Module):
    """A class of the user's own, whose layers run in another order than they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(20, 3)
        self.second = nn.Conv2d(7, 5, 3)
        self.blocks = nn.ModuleDict({"first": nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU())})
        self.flatten = nn.Flatten()

    def forward(self, x):
        x = self.blocks["first"](x)
        x = self.second(x)
        return self.head(self.flatten(x))


@pytest.mark.parametrize("schemes", SCHEMES[:3])
def test_a_module_of_the_users_own(schemes):
    module = seeded(Named)
    plan = make_plan(module, pick_weights(len(schemes)), ("filters",))
    names = ("blocks.first.0", "second", "head")
    plan = plan.model_copy(update={"layers": tuple(plan.layer(name) for name in names)})
    for number, name in enumerate(names):
        plan = plan.with_layer(name, scheme=schemes[number % len(schemes)])
    compare_training(module, plan, (2, 3, 6, 6))


class Reusing(nn.Module):
    """Layers without parameters that run several times, on channels that are cut unlike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 2, 3, padding=1)
        self.third = nn.Conv2d(2, 5, 1)
        self.relu, self.pool, self.flatten = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        x = self.dropout(self.pool(self.relu(self.first(x))))
        x = self.dropout(self.pool(self.relu(self.second(x))))
        return self.flatten(self.pool(self.relu(self.third(x))))


@pytest.mark.parametrize(
    "schemes",
    [("filters",), ("inputs",), ("whole", "filters", "filters"), ("filters", "whole", "filters")],
    ids=lambda schemes: "-".join(schemes),
)
@pytest.mark.parametrize("name", ["equal", "one zero"])
def test_layers_without_parameters_may_run_several_times(schemes, name):
    module = seeded(Reusing)
    compare_training(module, make_plan(module, WEIGHTS[name](world_size()), schemes), IMAGES)


@pytest.mark.parametrize("scheme", ["filters", "inputs", "whole"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_in_place_activations(scheme, bias):
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 7, 3, bias=bias),
            nn.ReLU(inplace=True),
            nn.Conv2d(7, 5, 3, bias=bias),
            nn.BatchNorm2d(5),
            nn.LeakyReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(80, 6, bias=bias),
            nn.Hardtanh(inplace=True),
        )
    )
    plan = make_plan(module, pick_weights(bias), (scheme,))
    # A batch of one needs no packing in an exchange, which then may hand out a view.
    compare_training(module, plan, IMAGES)
    compare_training(module.eval(), plan, (1, *IMAGES[1:]))


def test_an_in_place_activation_in_front():
    """It changes what the user gave, as it does without slicing."""
    module = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 7, 3)))
    compare_training(module, pick_weights(0), IMAGES, input_gradient=False)


@pytest.mark.parametrize("schemes", [("filters",), ("filters", "inputs")])
def test_channels_last(schemes):
    module = seeded(chain).to(memory_format=torch.channels_last)
    compare_training(module, make_plan(module, pick_weights(1), schemes), IMAGES)


# --- the networks that come with hetmp ----------------------------------------------------------

NETWORKS = {
    # name: (image, width, what it is compared in)
    "paper-mnist": ((1, 16, 16), 0.1, "train"),
    "paper-cifar": ((3, 16, 16), 0.1, "train"),
    "digits": ((1, 8, 8), 0.5, "train"),
    # Dropout has a generator of its own: with it on, there is nothing to compare with.
    "vgg11": ((3, 32, 32), 0.04, "eval"),
    "vgg16": ((3, 32, 32), 0.04, "eval"),
    "resnet18": ((3, 16, 16), 0.1, "train"),
    "resnet50": ((3, 16, 16), 0.06, "train"),
    "mobilenet_v2": ((3, 16, 16), 0.1, "no dropout"),
    "densenet121": ((3, 16, 16), 0.1, "train"),
    "unet": ((1, 16, 16), 0.06, "train"),
    "hyperspectral": ((1, 30, 5, 5), 0.4, "train"),
}


def test_every_network_is_compared():
    assert sorted(NETWORKS) == models.names()


def gentle(parameters) -> torch.optim.Optimizer:
    """Small steps: deep networks of a few channels make much of rounding where they step far."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("pattern", ["filters", "mixed", "batch", "batch:K"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, pattern):
    image, width, mode = NETWORKS[name]
    number = list(NETWORKS).index(name)
    module = seeded(lambda: models.build(name, image, 5, width=width)).train(mode != "eval")
    for layer in module.modules():
        if isinstance(layer, nn.Dropout) and mode == "no dropout":
            layer.p = 0.0
    weights = pick_weights(number + 3 * (pattern != "filters"))
    deep = len(list(module.modules())) > 60
    shape = ((6 if deep else 3), *image)
    if pattern == "filters":
        compare_training(module, weights, shape, optimizer=gentle if deep else sgd)
        return
    schemes = SCHEMES[(2, 4, 7, 6, 8)[number % 5]]
    if pattern.startswith("batch"):  # of the U-Net, the whole encoder; of the others, a third
        layers = sum(isinstance(part, MIXING) for part in module.modules())
        first = {"batch": layers, "batch:K": 10 if name == "unet" else 1 + layers // 3}[pattern]
        schemes = ("batch",) * first + ("filters",) * (layers - first)
        plan = make_plan(module, weights, schemes)
        compare_training(module, plan, shape, steps=1, optimizer=gentle, example=True)
        return
    plan = make_plan(module, weights, schemes)
    compare_training(module, plan, shape, optimizer=gentle if deep else adam)
