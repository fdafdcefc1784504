"""Networks with branches: joins, gates, shared and tied layers, several inputs and outputs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hetmp
from cases.branches import IMAGES, Everything
from helpers.comparison import (
    WEIGHTS,
    Differences,
    adam,
    batch,
    compare_training,
    make_plan,
    mean_loss,
    pick_weights,
    rank_loss,
    seeded,
    sgd,
    world_size,
)
from helpers.works import works
from hetmp import models
from hetmp.exchange import plain_tensors

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_module_with_everything(kind):
    module = seeded(Everything)
    weights = WEIGHTS[kind](world_size())
    model, _ = compare_training(module, weights, IMAGES, optimizer=adam if kind == "1:2:3" else sgd)
    assert list(model.hetmp.graph.fallbacks()) == []


@pytest.mark.parametrize("schemes", [("inputs", "filters"), ("whole", "filters", "inputs")])
@pytest.mark.parametrize("kind", ["70:25:5", "one zero"])
def test_under_plans_that_tie_nothing(schemes, kind):
    """Layers whose partitions differ where they meet: the exchanges make up for it."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 11, 1), nn.Conv2d(3, 11, 3, padding=1)
            self.c = nn.Conv2d(11, 11, 3, padding=1)
            self.norm, self.d = nn.BatchNorm2d(11), nn.Conv2d(22, 5, 1)

        def forward(self, x):
            y = self.a(x) - self.b(x)
            z = self.norm(self.c(y)) * y
            return self.d(torch.cat([z, y], 1)), z + y

    module, ranks = seeded(Residual), world_size()
    plan = make_plan(module, WEIGHTS[kind](ranks), schemes)
    for number, layer in enumerate(plan.layers):
        turned = [1.0 + (rank + number) % ranks for rank in range(ranks)]
        counts = hetmp.apportion(layer.channels, turned).counts
        plan = plan.with_layer(layer.name, counts=counts)
    compare_training(module, plan, IMAGES)


class Reused(nn.Module):
    """A block with parameters that runs on values that are cut in unlike ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 1), nn.Conv2d(3, 7, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(7), nn.PReLU(7), nn.Conv2d(7, 7, 1))

    def forward(self, x):
        return self.block(self.first(x)) + self.block(self.block(self.second(x)))


@pytest.mark.parametrize(
    "schemes", [None, ("filters", "inputs"), ("inputs",), ("whole", "filters")]
)
def test_a_block_that_runs_more_than_once(schemes):
    module = seeded(Reused)
    weights = pick_weights(2 if schemes is None else len(schemes))
    plan = weights if schemes is None else make_plan(module, weights, schemes)
    compare_training(module, plan, IMAGES)


class Tied(nn.Module):
    """Two layers with one weight, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 5), nn.Linear(12, 5, bias=False)
        self.decode.weight = self.encode.weight
        self.conv = nn.Conv2d(3, 12, 3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))] * 2)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        y = self.encode(y) * self.decode(y.tanh())
        for block in self.blocks:
            y = block(y).relu()
        return y


@pytest.mark.parametrize("kind", ["1:2:3", "root zero"])
def test_tied_parameters_and_modules_under_two_names(kind):
    module = seeded(Tied)
    model, _ = compare_training(module, WEIGHTS[kind](world_size()), IMAGES)
    assert model.decode.weight is model.encode.weight
    assert model.blocks[1] is model.blocks[0]
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in module.named_parameters()
    ]
    assert list(model.state_dict()) == list(module.state_dict())


def test_a_tied_layer_cannot_be_cut():
    module = seeded(Tied)
    plan = make_plan(module, [1.0] * world_size())
    with pytest.raises(hetmp.HetmpError, match=r"'encode' \(Linear\) shares a parameter"):
        hetmp.slice_model(module, plan)


class Scaled(nn.Module):
    """Parameters, buffers and constants that forward uses itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1)
        self.scale = nn.Parameter(torch.randn(7, 1, 1))
        self.register_buffer("shift", torch.randn(1, 7, 1, 1))

    def forward(self, x):
        y = self.conv(x) * self.scale + self.shift
        y = y * torch.tensor([0.5, -1.0, 2.0, 0.1, 1.0, 3.0, -0.2]).view(-1, 1, 1)
        return self.last(y) * self.scale.sum()


def test_parameters_that_are_values():
    compare_training(seeded(Scaled), pick_weights(3), IMAGES)


class Unused(nn.Module):
    """A layer whose output goes nowhere, and an output that leaves the device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 7, 3), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        self.norm(self.aux(x))
        return self.conv(x).cpu()


@pytest.mark.parametrize("scheme", ["filters", "inputs", "whole"])
def test_a_layer_that_the_loss_does_not_see_is_left_alone(scheme):
    """It has no gradient, not a gradient of zeros, which weight decay would act upon."""
    module = seeded(Unused)
    compare_training(module, make_plan(module, pick_weights(11), (scheme,)), IMAGES)


# --- inputs -------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.other = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(2, 7, 1)
        self.last = nn.Conv2d(7, 5, 1)

    def forward(self, image, other, *, gain=1.0, mask=None):
        y = self.image(image) * gain + self.other(other)
        return self.last(y if mask is None else y * mask)


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs(named):
    module = seeded(TwoInputs)
    reference = copy.deepcopy(module)
    ranks, rank = world_size(), hetmp.Group().rank
    shapes = {"image": IMAGES, "other": (3, 2, 8, 8), "mask": (3, 1, 8, 8)}
    tensors = {name: batch(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    if not named:
        del tensors["mask"]
    example = {**tensors, "gain": 2.0} if named else tuple(tensors.values())
    model = hetmp.slice_model(module, pick_weights(4), example_input=example)
    mine = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    if named:
        output, wanted = model(gain=2.0, **mine), reference(gain=2.0, **theirs)
    else:
        output, wanted = model(*mine.values()), reference(*theirs.values())
    rank_loss(output, rank).backward()
    mean_loss(wanted, ranks).backward()
    differences = Differences(model, reference)
    differences.note_gradients()
    differences.compare("output", output, wanted)
    for name in tensors:
        differences.compare(f"gradient of {name}", mine[name].grad, theirs[name].grad)
    differences.compare_gradients("once")
    differences.assert_none()
    with pytest.raises(hetmp.HetmpError, match=r"was sliced for gain=.*, got 3\.0.*example_input"):
        model(mine["image"], mine["other"], gain=3.0, **({"mask": mine["mask"]} if named else {}))


# --- training and evaluation --------------------------------------------------------------------


class Auxiliary(nn.Module):
    """Another output in training, and dropout that is told the mode."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)
        self.aux, self.head, self.p = nn.Conv2d(7, 3, 1), nn.Conv2d(7, 5, 1), p

    def forward(self, x):
        y = F.dropout(self.norm(self.conv(x)), self.p, training=self.training)
        return (self.head(y), self.aux(y)) if self.training else self.head(y)


def test_training_and_evaluation_do_other_things():
    module = seeded(Auxiliary)
    model, reference = compare_training(module, pick_weights(5), IMAGES)
    model.eval()
    reference.eval()
    with torch.no_grad():
        output, wanted = model(batch(IMAGES)), reference(batch(IMAGES))
    torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-12)
    compare_training(module.eval(), pick_weights(6), IMAGES)


@works("`train()`, `eval()` of the model or a part")
def test_a_part_in_another_mode_is_refused():
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Auxiliary()

        def forward(self, x):
            return self.part(x)

    model = hetmp.slice_model(seeded(Nested), [1.0] * world_size())
    model.part.norm.eval()
    model(batch(IMAGES))  # a layer has its own mode
    model.part.eval()
    with pytest.raises(hetmp.HetmpError, match="'part' is in evaluation mode and the model in"):
        model(batch(IMAGES))


def test_dropout_that_is_told_the_mode_does_not_depend_on_the_ranks():
    from mpi4py import MPI

    module, x = seeded(lambda: Auxiliary(0.4)), batch(IMAGES)
    outputs = []
    for comm in (None, MPI.COMM_SELF):
        weights = [1.0] if comm else pick_weights(7)
        model = hetmp.slice_model(module, weights, comm)
        torch.manual_seed(5)
        outputs.append(model(x)[0])
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(outputs[0], module.eval()(x))


# --- copies, precision, losses ------------------------------------------------------------------


def test_an_averaged_model_with_branches():
    module = seeded(Everything)
    model = hetmp.slice_model(module, pick_weights(8))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    reference = torch.optim.swa_utils.AveragedModel(module)
    for pair in ((averaged, model), (reference, module)):
        pair[0].update_parameters(pair[1])
    for a, b in zip(averaged(batch(IMAGES))["mask"], reference(batch(IMAGES))["mask"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    torch.optim.swa_utils.update_bn([batch(IMAGES, seed) for seed in range(3)], averaged)
    torch.optim.swa_utils.update_bn([batch(IMAGES, seed) for seed in range(3)], reference)
    merged = hetmp.merge_model(averaged.module)
    expected = reference.module.state_dict()
    for name in expected:
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["70:25:5", "one zero"])
def test_autocast(kind):
    """In bfloat16, to what bfloat16 holds; also beside ranks without channels."""
    module = seeded(Everything).float()
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, WEIGHTS[kind](world_size()))
    x = batch(IMAGES, dtype=torch.float32)
    losses = []
    for one in (model, reference):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = one(x)
            loss = outputs["classes"].float().square().mean() + outputs["mask"][0].float().mean()
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses, rtol=3e-2, atol=3e-2)
    merged = dict(model.named_parameters())
    with plain_tensors():
        assert all(parameter.grad.isfinite().all() for parameter in merged.values())


def test_a_loss_per_pixel():
    """Segmentation: cross-entropy of every pixel, the same on every rank."""
    module = seeded(lambda: models.build("unet", (3, 8, 8), 4, width=0.1))
    reference = copy.deepcopy(module)
    model = hetmp.slice_model(module, pick_weights(9))
    labels = torch.randint(4, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    differences = Differences(model, reference)
    optimizers = [sgd(model.parameters()), sgd(reference.parameters())]
    for step in range(3):
        losses = []
        for one, optimizer in zip((model, reference), optimizers, strict=True):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(one(batch(IMAGES, step)), labels))
            losses[-1].backward()
        differences.note_gradients()
        differences.compare(f"step {step}, loss", *losses)
        differences.compare_gradients(f"step {step}")
        for optimizer in optimizers:
            optimizer.step()
    differences.compare_state()
    differences.assert_none()
