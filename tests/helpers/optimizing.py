"""A sliced network and the unsliced one, trained alike by optimizers that are compared."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import hetmp
from helpers.comparison import (
    WEIGHTS,
    Differences,
    batch,
    make_plan,
    mean_loss,
    rank_loss,
    seeded,
    world_size,
)

IMAGES = (4, 3, 6, 6)

KINDS = ("equal", "1:2:3", "70:25:5", "one zero")
"""Of weights, by their names in ``comparison.WEIGHTS``."""

MIXED = ("filters", "whole", "inputs")


Scale = Callable[[Tensor], Tensor]


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


def network() -> nn.Sequential:
    """A norm, slopes, and no parameter whose true gradient is zero."""
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, bias=False),
        nn.BatchNorm2d(7),
        nn.PReLU(),
        nn.Conv2d(7, 5, 4),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


class Pair:
    """The two networks, and what both are put through.

    Args:
        kind: of weights.
        schemes: repeated over the layers; hetmp's own plan if None.
        build: makes the network.
        frozen: names of parameters that are not trained.
    """

    def __init__(
        self,
        kind: str,
        schemes: Sequence[str] | None = ("filters",),
        build: Callable[[], nn.Module] = network,
        frozen: Sequence[str] = (),
    ) -> None:
        module = seeded(build)
        for name in frozen:
            module.get_parameter(name).requires_grad_(False)
        self.reference = copy.deepcopy(module)
        weights = WEIGHTS[kind](world_size())
        plan = weights if schemes is None else make_plan(module, weights, schemes)
        self.model = hetmp.slice_model(module, plan)
        self.group = self.model.hetmp.group
        self.differences = Differences(self.model, self.reference)

    def backward(self, step: int, scale: Scale = _as_it_is, expected: Scale = _as_it_is) -> None:
        """Both networks' gradients on batch number *step*.

        Args:
            scale, expected: what is done to the losses of the sliced and the unsliced network.
        """
        x = batch(IMAGES, step)
        for network in (self.model, self.reference):
            network.zero_grad()
        expected(mean_loss(self.reference(x), self.group.size, step)).backward()
        scale(rank_loss(self.model(x), self.group.rank, step)).backward()
        if expected is _as_it_is:  # others are no measure
            self.differences.note_gradients()

    def forget_empty_gradients(self) -> None:
        """As if no backward pass had reached the slices without elements."""
        for parameter in self.model.parameters():
            if parameter.numel() == 0:
                parameter.grad = None

    def finish(self) -> None:
        """Compare parameters and buffers, and fail with all that was found."""
        assert self.differences.scale < 100, "the network diverged: tolerances mean nothing"
        self.differences.compare_state()
        self.differences.assert_none()


def train(pair: Pair, mine: torch.optim.Optimizer, expected, steps: int = 4) -> None:
    """Steps of both, and the comparison of what comes of them.

    Args:
        mine: of the sliced model.
        expected: an optimizer of the unsliced model, or a function that does its step.
    """
    advance = expected.step if isinstance(expected, torch.optim.Optimizer) else expected
    for step in range(steps):
        pair.backward(step)
        mine.step()
        advance()
    pair.finish()
