"""Modules that run a function between layers that mix channels, and what becomes of its result."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers.comparison import (
    batch,
    compare_training,
    make_plan,
    pick_weights,
    plan_on_images,
    seeded,
    world_size,
)
from hetmp.core.state import Sliced
from hetmp.slicing.graph import read_graph
from hetmp.slicing.schedule import CallStep

SAMPLED = "HETMP_TEST_SAMPLED" in os.environ
"""Whether a case has one of two kinds of plans."""

CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}

SCHEMES = (
    ("filters", "filters", "inputs"),
    ("inputs", "filters", "filters"),
    ("whole", "filters", "filters"),
    ("filters", "inputs", "whole"),
    ("filters", "whole", "inputs"),
)


@dataclass(frozen=True)
class Case:
    """A function of one or two activations of (n, channels, 4, 6), and what is expected of it.

    Attributes:
        gives: the state of its result under the default plan: sliced, partial or full.
        channels: of either activation.
        any_batch: whether it takes a batch of another size.
    """

    gives: str
    work: Callable[..., Tensor]
    channels: tuple[int, int] = (8, 8)
    shape: tuple[int, ...] = (3, 3, 4, 6)
    any_batch: bool = True


def sliced(work: Callable[..., Tensor], **options) -> Case:
    """A case that stays sliced."""
    return Case("sliced", work, **options)


def partial(work: Callable[..., Tensor], **options) -> Case:
    """A case of which every rank computes a summand."""
    return Case("partial", work, **options)


def full(work: Callable[..., Tensor], **options) -> Case:
    """A case that needs all channels on every rank."""
    return Case("full", work, **options)


class Around(nn.Module):
    """The function's operands come from convolutions; another layer takes what it gives."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.work = case.work
        self.takes = len(inspect.signature(case.work).parameters)
        self.first = nn.Conv2d(3, case.channels[0], 1)
        if self.takes == 2:
            self.second = nn.Conv2d(3, case.channels[1], (3, 1), padding=(1, 0))
        self.after = nn.Identity()
        shape = self(torch.zeros(case.shape)).shape
        if len(shape) == 2:
            self.after = nn.Linear(shape[1], 3)
        elif len(shape) in CONV:
            self.after = CONV[len(shape)](shape[1], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        operands = [self.first(x).sigmoid()]
        if self.takes == 2:
            operands.append(self.second(x).sigmoid())
        return self.after(self.work(*operands))


def check(case: Case, number: int) -> None:
    """Compare under the default plan, which must keep slices, and under others.

    Of one layer by layer and one that cuts images, a case has one in turn where tests are sampled,
    another on another number of ranks.
    """
    weights = pick_weights(number)
    model, reference = compare_training(
        seeded(lambda: Around(case)), weights, case.shape, example=True
    )
    calls = [step for step in model.hetmp.schedule.steps if isinstance(step, CallStep)]
    last = [step for step in calls if step.run.layer is None][-1]
    gives = "sliced" if isinstance(last.after, Sliced) else str(last.after)
    one = batch((1, *case.shape[1:]), 9)
    if case.any_batch:
        torch.testing.assert_close(model(one), reference(one), rtol=0, atol=1e-10)
    turn = (number + world_size()) % 2
    if turn or not SAMPLED:
        module = seeded(lambda: Around(case))
        plan = plan_on_images(module, pick_weights(number + 1), number, case.shape)
        model, reference = compare_training(module, plan, case.shape, example=True, steps=1)
        if case.any_batch:
            torch.testing.assert_close(model(one), reference(one), rtol=0, atol=1e-10)
    if not turn or not SAMPLED:
        module = seeded(lambda: Around(case))
        plan = make_plan(module, pick_weights(number + 3), SCHEMES[number % 5], turned=True)
        compare_training(module, plan, case.shape, example=True)
    assert gives == case.gives, f"{last.name} gives {last.after}"


def targets(module: nn.Module, shape: tuple[int, ...]) -> set:
    """The functions, and the names of methods, that a module calls on rules of their own."""
    graph = read_graph(module.double(), torch.empty(shape, dtype=torch.float64))
    return {
        node.call.target
        for node in graph.nodes
        if node.call.layer is None and node.reason is None and node.call.operands
    }
