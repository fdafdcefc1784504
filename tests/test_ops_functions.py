"""Elementwise functions, operators and methods: equal to the unsliced module, slice by slice."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases.axes import CASES as AXES
from cases.elementwise import FUNCTIONS, METHODS, WORKS
from cases.products import CASES as PRODUCTS
from cases.reductions import CASES as REDUCTIONS
from cases.shapes import CASES as SHAPES
from cases.unpooling import CASES as UNPOOLING
from helpers.comparison import compare_training, make_plan, pick_weights, seeded, world_size
from helpers.functional import SCHEMES, Around, check, full, partial, sliced, targets
from hetmp import slice_model
from hetmp.core.state import Sliced
from hetmp.ops.functions.elementwise import Elementwise
from hetmp.ops.functions.functional_conv import GivenWeight
from hetmp.ops.functions.indexing import Assignment
from hetmp.ops.layers.batch_norm import BareNorm
from hetmp.slicing.schedule import CallStep

SHAPE = (3, 3, 4, 6)

LAYERED = (*GivenWeight.functions, *BareNorm.functions, *Assignment.functions)
"""Tested in test_functional_layers.py, as layers of their own."""


class Several(nn.Module):
    """Some functions on the same two activations, their results side by side."""

    def __init__(self, works: list) -> None:
        super().__init__()
        self.works = works
        self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, (1, 3), padding=(0, 1))
        self.after = nn.Conv2d(5 * (1 + len(works)), 3, 1)

    def forward(self, x):
        one, two = self.first(x).sigmoid(), self.second(x).sigmoid()
        results = [work(one, two).double() for work in self.works]
        return self.after(torch.cat([*results, one * two], 1))


TOGETHER = 12
GROUPS = {
    f"{names[0]} to {names[-1]}": [WORKS[name] for name in names]
    for start in range(0, len(WORKS), TOGETHER)
    for names in [list(WORKS)[start : start + TOGETHER]]
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", GROUPS)
def test_elementwise(name):
    """Under the default plan nothing is exchanged between the operands and the end."""
    number = list(GROUPS).index(name)
    module = seeded(lambda: Several(GROUPS[name]))
    if number % 3 == 2:
        schemes = (("inputs", "filters"), ("whole", "whole", "inputs"))[number % 2]
        plan = make_plan(module, pick_weights(number), schemes)
        compare_training(module, plan, SHAPE)
        return
    model, _ = compare_training(module, pick_weights(number), SHAPE)
    for step in model.hetmp.schedule.steps:
        if isinstance(step, CallStep) and isinstance(step.node.rule, Elementwise):
            assert isinstance(step.after, Sliced), step.name


# --- unlike operands -----------------------------------------------------------------------------

BROADCAST = {
    "gate": sliced(lambda x, y: x * y.mean((2, 3), keepdim=True)),
    "gate-of-another-partition": sliced(
        lambda x, y: x * y[:, 3:].mean((2, 3), True), channels=(5, 8)
    ),
    "gate-in-front": sliced(lambda x, y: y.mean((2, 3), keepdim=True) * x),
    "mask": sliced(lambda x, y: x * y.mean(1, keepdim=True)),
    "mask-of-one-channel": sliced(lambda x, y: x * y, channels=(8, 1)),
    "mask-cut-out": sliced(lambda x, y: y[:, :1] + x),
    "one-channel-each": sliced(lambda x, y: x / y, channels=(1, 1)),
    "two-channels": sliced(lambda x, y: x - y, channels=(2, 2)),
    "sample": sliced(lambda x, y: x[0] + y),
    "sum-of-all": sliced(lambda x, y: x / y.sum()),
    "norm": sliced(lambda x: x / (x.norm() + 1)),
    "outer": sliced(lambda x, y: x.mean((2, 3)).unsqueeze(2) * y.mean((2, 3)).unsqueeze(1)),
    "outer-unlike": sliced(
        lambda x, y: x.mean((2, 3)).unsqueeze(2) * y.mean((2, 3)).unsqueeze(1), channels=(5, 7)
    ),
    "last-axis": sliced(lambda x, y: x.permute(0, 2, 3, 1) + y.mean((2, 3))[:, None, None]),
    "crossed": sliced(lambda x, y: x + y.transpose(1, 2), shape=(3, 3, 8, 6)),
    "of-fewer-axes": full(lambda x, y: x.mean((2, 3)).type_as(y)),
    "of-fewer-channels": full(lambda x, y: x.type_as(y), channels=(1, 8)),
    "alpha": sliced(lambda x, y: torch.add(x, y, alpha=2) - torch.sub(x, y, alpha=0.5)),
    "alpha-methods": sliced(lambda x, y: x.add(y, alpha=-3).sub(y.mean(1, True), alpha=2)),
    "scalars": sliced(lambda x: 2 - x * 3 + 1 / (x + 0.5) - x / 4 + 2**x + (x**2) % 0.3 - (-x)),
    "torch-scalars": sliced(lambda x: torch.mul(2, torch.pow(2, torch.add(x, 1)))),
    "sizes": sliced(lambda x: x / x.size(1) + x * x.shape[-1] - x.dim() / x.numel()),
    "where-scalars": sliced(
        lambda x, y: torch.where(x > y, x, 0.0) + torch.where(x > 0.5, 1.0, y)
    ),
    "where-gate": sliced(lambda x, y: torch.where(y.mean(1, True) > 0.5, x, -x)),
    "clamp-tensors": sliced(lambda x, y: torch.clamp(x, min=y.mean(1, True), max=y + 0.1)),
    "lerp-tensors": sliced(lambda x, y: torch.lerp(x, y, y.mean((2, 3), keepdim=True))),
    "addcmul-gates": sliced(
        lambda x, y: torch.addcmul(x, y.mean((2, 3), True), y.mean(1, True), value=2)
    ),
    "the-same-twice": sliced(lambda x: x * x + torch.maximum(x, x)),
    "in-a-row": sliced(lambda x, y: (x + y).mul_(y).add_(1).clamp_(0.5, 1.5).relu_()),
}  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("name", BROADCAST)
def test_broadcasting(name):
    check(BROADCAST[name], list(BROADCAST).index(name))


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["where-scalars", "all", "sum"])
def test_masks_and_counts_that_change_ranks(name):
    cases = {
        "where-scalars": sliced(BROADCAST["where-scalars"].work, channels=(5, 5)),
        "all": full(lambda x: x.mean(1) * (x > 0.5).all(1)),
        "sum": partial(lambda x: x.mean(1) * (x > 0.5).sum(1)),
    }
    module = seeded(lambda: Around(cases[name]))
    plan = make_plan(module, [float(rank + 1) for rank in range(world_size())], turned=True)
    compare_training(module, plan, SHAPE, steps=1, example=True)


class Scaled(nn.Module):
    """Parameters and buffers that broadcast against activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 7, 3, padding=1)
        self.layer = nn.Parameter(torch.ones(7, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, 7, 1, 1))
        self.last = nn.Parameter(torch.ones(7))
        self.pixel = nn.Parameter(torch.ones(4, 6))
        self.row = nn.Parameter(torch.ones(1, 1, 6))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.one = nn.Parameter(torch.ones(1, 1, 1, 1))
        self.register_buffer("mean", torch.linspace(-1, 1, 7).view(7, 1, 1))
        self.after = nn.Conv2d(7, 3, 1)

    def forward(self, x):
        x = self.first(x)
        x = x + self.second((x - self.mean).tanh()) * self.layer + self.shift
        x = (x.permute(0, 2, 3, 1) * self.last).permute(0, 3, 1, 2)
        x = torch.addcmul(self.one, x, self.pixel) / self.temperature
        return self.after(torch.maximum(x, self.row - torch.tensor(1.0).double()))


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [None, *SCHEMES])
def test_parameters_and_buffers_among_the_operands(schemes):
    number = len(schemes[0] + schemes[2]) if schemes else 0
    module = seeded(Scaled)
    weights = pick_weights(number)
    if schemes:
        weights = make_plan(module, weights, schemes, turned=True)
    model, _ = compare_training(module, weights, SHAPE, example=True)
    if not schemes:
        assert len(model.hetmp.exchanges) == 7  # full -> sliced of four, two gathers, the result


class WithTheImage(nn.Module):
    """The input itself is joined to activations, and added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(11, 3, 3, padding=1)
        self.after = nn.Conv2d(9, 5, 1)

    def forward(self, image):
        x = self.second(torch.cat([self.first(image).relu(), image], 1))
        return self.after(torch.cat((image, x + image, x * image.mean(1, keepdim=True)), 1))


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [None, *SCHEMES])
def test_a_full_operand_beside_slices(schemes):
    number = len(schemes[0] + schemes[1]) if schemes else 1
    module = seeded(WithTheImage)
    weights = pick_weights(number)
    if schemes:
        weights = make_plan(module, weights, schemes, turned=True)
    compare_training(module, weights, SHAPE)


NAMED = {
    "narrow": sliced(lambda x: torch.narrow(input=x, dim=1, start=2, length=3)),
    "chunk": sliced(lambda x: torch.chunk(input=x, chunks=3, dim=1)[1]),
    "split": sliced(lambda x: torch.split(tensor=x, split_size_or_sections=3, dim=1)[1]),
    "cat": sliced(lambda x, y: torch.cat(dim=1, tensors=[x, y])),
    "stack": sliced(lambda x, y: torch.stack(tensors=[x, y], dim=2)),
    "flatten": sliced(lambda x: torch.flatten(input=x, start_dim=1)),
    "permute": sliced(lambda x: torch.permute(input=x, dims=(0, 2, 3, 1))),
    "pool": sliced(lambda x: F.max_pool2d(kernel_size=2, input=x), channels=(2, 2)),
    "where": sliced(lambda x, y: torch.where(input=x, condition=x > 0.5, other=y)),
    "mean": partial(lambda x: torch.mean(dim=1, input=x), channels=(2, 2)),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", NAMED)
def test_arguments_by_name(name):
    check(NAMED[name], list(NAMED).index(name))


class NamedInputs(nn.Sequential):
    """Calls its layers with their argument's name."""

    def forward(self, input):
        for layer in self:
            input = layer(input=input)
        return input


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", [("filters",), ("inputs",)])
def test_layers_whose_argument_is_named(schemes):
    """On ranks without channels too."""
    module = seeded(
        lambda: NamedInputs(
            nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Conv2d(2, 4, 1), nn.Flatten()
        )
    )
    weights = [0.0] * (world_size() - 1) + [1.0]
    compare_training(module, make_plan(module, weights, schemes), SHAPE)


class Sizes(nn.Module):
    """Returns what it was told of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        x = self.first(x)
        told = x.shape, x.size(1), x.size()[1:], x.dim(), x.ndim, x.ndimension(), x.numel()
        kind = x.get_device(), x.is_cuda, x.is_floating_point(), x.requires_grad
        x = x + torch.ones(1, dtype=x.dtype, device=x.device)
        return x, told, kind, x.stride()


@pytest.mark.mpi
def test_what_is_asked_of_an_activation_is_answered_of_the_whole():
    x = torch.ones(2, 3, 5, 6)
    module = Sizes()
    model = slice_model(module, pick_weights(0))
    given, expected = model(x), module(x)
    assert given[1:] == expected[1:]
    torch.testing.assert_close(given[0], expected[0])


# --- completeness -------------------------------------------------------------------------------

EXEMPT = {
    *(getattr(F, name) for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")),
    # Their own tests have them.
    *LAYERED,
    *("dim", "ndimension", "is_floating_point"),  # answered while an example is traced
    *(F.tanh, F.sigmoid, F.upsample),  # torch.fx sees what they call: x.tanh(), F.interpolate
    "cpu",  # which does not run on the meta device, where shapes are found
}


def test_every_function_and_method_that_has_a_rule_is_compared():
    """A new one must be added to the tables: torch.fx must see it as what has the rule."""
    seen = set()
    for works in GROUPS.values():
        seen |= targets(Several(works), SHAPE)
    tables = (BROADCAST, SHAPES, REDUCTIONS, PRODUCTS, UNPOOLING, AXES)
    for case in (case for table in tables for case in table.values()):
        seen |= targets(Around(case), case.shape)
    seen |= targets(Sizes(), SHAPE)
    missing = {*FUNCTIONS, *METHODS} - seen - EXEMPT
    assert not missing
