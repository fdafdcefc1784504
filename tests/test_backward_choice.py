"""What the backward pass has of a layer, as the plan says: kept, gathered again, computed again.

Each network is trained beside the unsliced one, in float64. What is kept is counted where autograd
saves it.
"""

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, compare_training, make_plan, pick, pick_weights, seeded

CHOICES = (
    ("regather",),
    ("regather", "keep", None),
    ("recompute",),
    ("recompute", "keep"),
    ("regather", "recompute", None, "recompute"),
)
SCHEMES = (
    ("filters",),
    ("batch", "filters"),
    ("filters", "inputs", "whole"),
    ("inputs", "filters"),
)


class Residual(nn.Module):
    """One value is taken by two convolutions, and a layer may have fewer channels than ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 6, 6, 6, 2))
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut, self.narrow = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(2, 5)

    def forward(self, x):
        y = self.norms[0](self.stem(x)).relu_()
        z = nn.functional.relu(self.norms[1](self.first(y)), inplace=True)
        z = self.norms[2](self.second(z))
        z += self.norms[3](self.shortcut(y))
        z = nn.functional.max_pool2d(z.relu_(), 2)
        z = self.norms[4](self.narrow(z)).sigmoid()
        return self.head(z.mean((2, 3)))


def choose(plan, choices):
    """The plan with *choices* repeated over its layers."""
    names = [layer.name for layer in plan.layers]
    return plan.with_backward({name: choices[i % len(choices)] for i, name in enumerate(names)})


@pytest.mark.mpi
@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no overlap"])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_a_network_trains_alike_whatever_is_gathered_again(choices, number, overlap):
    module = seeded(Residual)
    plan = make_plan(module, pick_weights(number), pick(SCHEMES, number))
    tuning = hetmp.Tuning(overlap=overlap, regather=bool(number % 2))
    compare_training(module, choose(plan, choices), (4, 3, 6, 6), steps=3, tuning=tuning)


def saved_by(module, plan, tuning=None):
    """Bytes that a forward pass keeps for the backward pass on this rank, each memory once."""
    model = hetmp.slice_model(module, plan, tuning=tuning, verify=False)
    sizes: dict[int, int] = {}

    def pack(x):
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model(batch((4, 3, 6, 6)))
    output.sum().backward()
    return sum(size for pointer, size in sizes.items() if pointer not in own)


@pytest.mark.mpi(min_size=2)
def test_an_input_of_two_layers_is_kept_if_one_of_them_keeps_it():
    module = seeded(Residual)
    plan = make_plan(module, pick_weights(0))
    kept = saved_by(module, plan)
    one = saved_by(module, plan.with_backward({"first": "regather"}))
    both = saved_by(module, plan.with_backward({"first": "regather", "shortcut": "regather"}))
    whole = 4 * 8 * 6 * 6 * 8  # its share of that is kept in any case, by the activation
    takes = any(plan.layer(n).counts[hetmp.Group().rank] for n in ("first", "shortcut"))
    assert one == kept
    assert both == kept - whole * takes


@pytest.mark.mpi(min_size=2)
def test_a_layers_own_choice_counts_before_the_runs():
    module = seeded(Residual)
    plan = make_plan(module, pick_weights(0))
    regather = hetmp.Tuning(regather=True)
    kept = plan.with_backward({"*": "keep"})
    assert saved_by(module, kept, regather) == saved_by(module, plan)
    chosen = plan.with_backward({"*": "regather"})
    assert saved_by(module, chosen) == saved_by(module, plan, regather)
    takes = any(layer.counts[hetmp.Group().rank] for layer in plan.layers[1:])
    assert (saved_by(module, chosen) < saved_by(module, plan)) == takes
