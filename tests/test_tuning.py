"""However the work is done, it is the same network: every tuning against the unsliced module."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

import hetmp
from cases.branches import IMAGES, Everything
from helpers.comparison import (
    WEIGHTS,
    adam,
    batch,
    compare_training,
    make_plan,
    pick_weights,
    seeded,
    sgd,
)

pytestmark = pytest.mark.mpi

TUNINGS = [hetmp.Tuning(*choice) for choice in product((True, False), repeat=4)]
"""All but rounding, which changes results."""

NUMBERS = [
    pytest.param(
        number, marks=() if sum(map(bool, vars(tuning).values())) % 2 == 0 else pytest.mark.thorough
    )
    for number, tuning in enumerate(TUNINGS)
]
"""One half of them has every choice of any three settings."""


def told(tuning: hetmp.Tuning) -> str:
    """What is on."""
    return "+".join(name for name, on in vars(tuning).items() if on) or "nothing"


class Column(nn.Module):
    """Convolutions that are best taken in either memory format, transposed, padded and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 11, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(11, 7, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(7),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(7, 13, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(13, 5, 1),
            nn.Tanh(),
            nn.ConvTranspose2d(5, 6, 3, stride=2, padding=1, output_padding=1),
            nn.Conv2d(6, 8, 3, dilation=2, padding="same"),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.mark.parametrize("number", NUMBERS, ids=map(told, TUNINGS))
def test_every_tuning_trains_the_same_network(number):
    kinds = list(WEIGHTS.values())
    weights = kinds[number % len(kinds)](hetmp.Group().size)
    compare_training(
        seeded(Everything),
        weights,
        IMAGES,
        optimizer=(sgd, adam)[number % 2],
        tuning=TUNINGS[number],
    )


@pytest.mark.parametrize("number", NUMBERS, ids=map(told, TUNINGS))
def test_every_tuning_with_layers_of_all_settings(number):
    weights = pick_weights(number)
    compare_training(seeded(Column), weights, (2, 3, 12, 12), tuning=TUNINGS[number])
    module = seeded(Column)
    for layer in list(module.features)[:6]:
        layer.requires_grad_(False)
    module.head[1].weight.requires_grad_(False)
    plan = make_plan(module, weights, ("filters", "inputs", "filters"), turned=True)
    shape = (2, 3, 12, 12)
    compare_training(module, plan, shape, tuning=TUNINGS[number], input_gradient=bool(number % 2))


def test_rounding_on_the_wire_halves_the_bytes_and_costs_three_digits():
    weights = WEIGHTS["70:25:5"](hetmp.Group().size)
    losses, received = {}, {}
    for tuning in (hetmp.Tuning(), hetmp.Tuning(rounded=True)):
        model = hetmp.slice_model(seeded(Column).float(), weights, tuning=tuning)
        optimizer = sgd(model.parameters())
        losses[tuning] = []
        for step in range(5):
            optimizer.zero_grad()
            loss = model(batch((4, 3, 12, 12), step, torch.float32)).square().mean()
            loss.backward()
            optimizer.step()
            losses[tuning].append(loss.item())
        counters = [
            counter
            for exchange in model.hetmp.exchanges
            for counter in (exchange.forward_counter, exchange.backward_counter)
        ]
        received[tuning] = sum(counter.bytes for counter in counters)
    (exact, rounded), (whole, half) = losses.values(), received.values()
    assert half == whole / 2
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert model.hetmp.group.size == 1 or rounded != exact


class Normed(nn.Module):
    """Both norms, whose own exchanges lie inside a layer and inside a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(2, 12)
        self.second, self.last = nn.Conv2d(12, 6, 3), nn.LayerNorm((6, 4, 4))

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x))))


def bytes_by_exchange(model: hetmp.SlicedModel) -> list[int]:
    """The bytes that every exchange of a model has received so far, forward and backward."""
    return [
        counter.bytes
        for module in model.modules()
        for counter in (
            getattr(module, "forward_counter", None),
            getattr(module, "backward_counter", None),
        )
        if counter is not None
    ]


def test_models_over_one_group_keep_their_own_wires():
    """Also where one runs between the forward and the backward pass of the other."""
    weights, images = WEIGHTS["70:25:5"](hetmp.Group().size), batch((2, 3, 8, 8), 0).double()
    narrow = hetmp.Tuning(wire="float32")
    alone = hetmp.slice_model(seeded(Normed).double(), weights)
    alone(images.requires_grad_()).sum().backward()
    whole = bytes_by_exchange(alone)

    models = [
        hetmp.slice_model(seeded(Normed).double(), weights, tuning=tuning)
        for tuning in (hetmp.Tuning(), narrow)
    ]
    models.append(copy.deepcopy(models[1]))
    outputs = [model(images.clone().requires_grad_()) for model in models]
    for output in outputs:
        output.sum().backward()
    wide, half, copied = map(bytes_by_exchange, models)
    assert wide == whole
    assert half == copied
    assert half == pytest.approx([count / 2 for count in whole], abs=2)  # each move rounds down
    assert hetmp.Group().size == 1 or any(whole)


def test_the_wire_stays_what_a_model_was_sliced_with():
    model = hetmp.slice_model(seeded(Column), pick_weights(0), tuning=hetmp.Tuning(wire="float64"))
    model.hetmp.tuning = hetmp.Tuning(overlap=False, wire="float64")
    with pytest.raises(hetmp.HetmpError, match="sliced with wire='float64' and cannot change it"):
        model.hetmp.tuning = hetmp.Tuning()
