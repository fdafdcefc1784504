"""A small network, sliced with ranks that have nothing, beside the unsliced one."""

import copy

from torch import nn

import hetmp
from helpers.comparison import Differences, make_plan, sgd, world_size

IMAGES = (4, 3, 6, 6)

PLANS = {"filters": ("filters",), "mixed": ("inputs", "whole", "filters")}


def small(dropout: float = 0.0) -> nn.Sequential:
    """Two convolutions with a norm and slopes, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 3),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(7, 5, 2, bias=False),
        nn.PReLU(5),
        nn.Flatten(),
        nn.Linear(45, 4),
    )


def with_a_lazy_rank(module: nn.Module, plan: str) -> hetmp.Plan:
    """A plan in which a rank has nothing, where there is more than one."""
    ranks = world_size()
    weights = [2.0, 0.0, 1.0, 3.0, 1.0][:ranks]
    return make_plan(module, weights, PLANS[plan])


def with_lazy_ranks(module: nn.Module, plan: str) -> hetmp.Plan:
    """A plan in which another rank has nothing in every layer."""
    ranks = world_size()
    made = make_plan(module, [1] * ranks, PLANS[plan])
    for number, layer in enumerate(made.layers):
        weights = [0.0 if rank == (number + 1) % ranks else 1.0 for rank in range(ranks)]
        counts = hetmp.apportion(layer.channels, weights if ranks > 1 else [1]).counts
        made = made.with_layer(layer.name, counts=counts)
    return made


class Pair:
    """A sliced model and the unsliced one, that the same things are done to."""

    def __init__(self, module: nn.Module, plan: hetmp.Plan) -> None:
        self.reference = copy.deepcopy(module)
        self.model = hetmp.slice_model(module, plan)
        self.rank, self.ranks = self.model.hetmp.group.rank, self.model.hetmp.group.size
        self.differences = Differences(self.model, self.reference)
        self.optimizers = [sgd(self.model.parameters()), sgd(self.reference.parameters())]

    def compare(self, when: str) -> None:
        """All gradients."""
        self.differences.note_gradients()
        self.differences.compare_gradients(when)

    def step(self) -> None:
        """A step of both optimizers."""
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def finish(self) -> None:
        """Compare parameters and buffers, and fail with all that was found."""
        self.differences.compare_state()
        self.differences.assert_none()
