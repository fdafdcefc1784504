"""The parts of a sliced model: of torch's classes on every rank, and what is set on them counts."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hetmp
from helpers.comparison import (
    Differences,
    batch,
    compare_training,
    pick_weights,
    rank_loss,
    seeded,
    world_size,
)
from helpers.refusing import refused
from helpers.saving import shared
from helpers.works import works

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 8, 8)


class Padded(nn.Conv2d):
    """A class of the user's that computes as its base does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class Block(nn.Module):
    """A block with every kind of layer that runs in a way of its own on slices."""

    slope = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Padded(8, 8), nn.GroupNorm(2, 8)
        self.act, self.drop = nn.LeakyReLU(0.2), nn.Dropout(0.4)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.drop(self.pool(self.act(self.norm(self.conv(x))))) * self.slope


class Net(nn.Module):
    """Layers of every kind, an attribute that forward reads, and a layer that it does not use."""

    fade = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block, self.body = Block(), nn.Sequential(nn.Conv2d(8, 7, 3), nn.ReLU())
        self.flat, self.head = nn.Flatten(), nn.Linear(28, 5)
        self.layer_norm, self.unused = nn.LayerNorm(28), nn.Linear(2, 2)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x))) * self.fade
        return self.head(self.layer_norm(self.flat(self.body(self.block(x)))))


def sliced(module: nn.Module, plan) -> hetmp.SlicedModel:
    """Slice without verification, which other tests are for."""
    return hetmp.slice_model(module, plan, verify=False)


def plans(module: nn.Module) -> list:
    """Unequal shares with a rank that has nothing, and layers cut along their inputs."""
    weights = [3.0, 1.0, 0.0, 2.0, 1.0][: world_size()]
    plan = hetmp.plan_from_weights(hetmp.read_graph(module), weights)
    return [
        weights,
        plan.with_layer("block.conv", scheme="inputs").with_layer("head", scheme="inputs"),
    ]


@works("parts by type: `isinstance`, `type(part) is nn.Conv2d`")
def test_parts_are_of_the_same_classes_as_in_the_module():
    module = seeded(Net)
    for plan in plans(module):
        model = sliced(module, plan)
        for path, part in module.named_modules():
            if not path:
                continue
            local = model.get_submodule(path)
            assert isinstance(local, type(part))
            if not any(part.children()):
                assert type(local) is type(part)


@works("parameter groups by type of layer")
@pytest.mark.parametrize("kind", [nn.GroupNorm, nn.LayerNorm, nn.Conv2d, nn.Linear, nn.BatchNorm2d])
def test_parameter_groups_by_type(kind, tmp_path):
    def optimizer(module):
        parts = (part for part in module.modules() if isinstance(part, kind))
        chosen = [p for part in parts for p in part.parameters(recurse=False)]
        others = [p for p in module.parameters() if all(p is not c for c in chosen)]
        groups = [{"params": chosen, "weight_decay": 0.5}, {"params": others}]
        return torch.optim.SGD(groups, lr=0.05)

    module = seeded(Net)
    module.block.drop.p = 0.0
    reference = copy.deepcopy(module)
    model = sliced(module, plans(module)[1])
    optimizers = [optimizer(model), optimizer(reference)]
    assert [len(g["params"]) for g in optimizers[0].param_groups] == [
        len(g["params"]) for g in optimizers[1].param_groups
    ]
    for _ in range(2):
        for each, net in zip(optimizers, (model, reference), strict=True):
            each.zero_grad()
            net(batch(IMAGES)).square().mean().backward()
            each.step()
    differences = Differences(model, reference)
    differences.compare_state()
    differences.assert_none()
    hetmp.save(shared(tmp_path) / "a.h5", model, optimizers[0])  # ranks agree on the groups


@works("freezing batch norms by type")
def test_frozen_batch_norms_count_no_batches():
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    )
    reference = copy.deepcopy(module)
    model = sliced(module, [0.0, 1.0, 2.0, 0.0, 1.0][: world_size()] if world_size() > 1 else [1])
    for net in (model, reference):
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        net(batch(IMAGES))
    differences = Differences(model, reference)
    differences.compare_state()
    differences.assert_none()


@works("`part.train()`, `part.p = 0.1` of every `nn.Dropout`")
def test_dropout_is_switched_on_by_type():
    module = seeded(Net)
    model, x = sliced(module, plans(module)[0]).eval(), batch(IMAGES)
    settled = model(x)
    assert torch.equal(settled, model(x))
    drops = [part for part in model.modules() if isinstance(part, nn.Dropout)]
    for part in drops:
        part.train()
    assert len(drops) == 1
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    for part in drops:
        part.p = 0.0
    torch.testing.assert_close(model(x), settled, rtol=1e-12, atol=0)


def test_a_representation_names_the_share():
    model = sliced(seeded(Net), [1.0] + [0.0] * (world_size() - 1))
    text = repr(model.stem)
    assert text.startswith("Conv2d(3, 8, kernel_size=(3, 3)")
    first = hetmp.Group().is_root
    assert ("filters 0-7 of 8" if first else "none of 8 filters") in text
    assert type(model.block).__name__ in repr(model.block)


# --- attributes ---------------------------------------------------------------------------------


@works("an attribute that forward reads: `model.alpha = 0.5`, `model.block.rate *= 2`")
def test_attributes_set_from_outside_take_effect():
    module = seeded(Net)
    module.block.drop.p = 0.0
    reference = copy.deepcopy(module)
    for plan in plans(module):
        model, net = sliced(module, plan), copy.deepcopy(reference)
        assert model.fade == 1.0
        for each in (model, net):
            each.fade = 0.25
            each.block.slope *= -3
        differences = Differences(model, net)
        for number in range(2):
            expected, output = net(batch(IMAGES, number)), model(batch(IMAGES, number))
            differences.compare("output", output, expected)
            rank_loss(output, 0).backward()
            rank_loss(expected, 0).backward()
            differences.note_gradients()
            differences.compare_gradients(f"pass {number}")
        differences.compare_state()
        differences.assert_none()
        assert (model.fade, model.block.slope) == (0.25, -6.0)


@works("a layer's setting: `layer.eps = 0.1`, `layer.stride = (2, 2)`")
def test_settings_of_layers_take_effect():
    module = seeded(Net)
    module.block.drop.p = 0.0
    reference = copy.deepcopy(module)
    for plan in plans(module):
        model, net = sliced(module, plan), copy.deepcopy(reference)
        model(batch(IMAGES))
        for each in (model, net):
            each.bn.momentum, each.bn.eps = 0.5, 0.3
            each.block.norm.eps = each.layer_norm.eps = 0.2
            each.block.act.negative_slope = 0.7
            each.stem.dilation = each.stem.padding = (2, 2)
        net(batch(IMAGES)), net.bn.reset_running_stats(), model.bn.reset_running_stats()
        model.bn.momentum = 0.9
        model(batch(IMAGES)), model.bn.reset_running_stats()
        model.bn.momentum = net.bn.momentum = None
        output, expected = model(batch(IMAGES, 1)), net(batch(IMAGES, 1))
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
        differences = Differences(model, net)
        differences.compare_state()
        differences.assert_none()


class Branching(nn.Module):
    """A module whose attributes decide what runs."""

    stage, config = 1, ()

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.options = {"scale": 2}

    def forward(self, x):
        for conv in self.convs[: self.stage]:
            x = conv(x)
        return x * self.options["scale"]

    def stages(self):
        """A method, which a sliced model does not have."""
        return self.stage


@works("an attribute that decides which layers run")
def test_what_needs_another_slicing_is_refused():
    model, x = sliced(seeded(Branching), pick_weights(0)), batch(IMAGES)
    before = model(x)

    def set_stage():
        model.stage = 2

    def set_options():
        model.options = {"scale": 3}

    assert "'stage' of a sliced model cannot be set to 2" in refused(set_stage)
    assert "a dict may change unseen" in refused(set_options)
    assert model.stage == 1
    with pytest.raises(AttributeError, match="'stages' of Branching is a method"):
        model.stages()
    with pytest.raises(AttributeError, match="'options' of Branching is a dict"):
        model.options["scale"] = 3
    assert torch.equal(model(x), before)


def test_attributes_that_the_module_does_not_know_are_kept():
    model = sliced(seeded(Branching), pick_weights(1))
    model.title, model.history = "mine", []
    model.history.append(model.title)
    assert model.history == ["mine"]


# --- parts that are replaced --------------------------------------------------------------------


@works("a layer, block or parameter in place of another: `model.head = nn.Linear(8, 5)`")
@pytest.mark.parametrize("path", ["head", "block", "body", "body.0", "block.conv"])
def test_a_part_is_not_replaced(path):
    model = sliced(seeded(Net), [1.0] * world_size())
    above, _, name = path.rpartition(".")

    def replace():
        setattr(model.get_submodule(above), name, nn.Linear(28, 5))

    assert f"'{path}' of a sliced model cannot be replaced by a Linear" in refused(replace)


def test_parts_are_not_added_or_removed():
    model = sliced(seeded(Net), [1.0] * world_size())
    refused(lambda: model.body.append(nn.ReLU()))
    refused(lambda: model.add_module("more", nn.ReLU()))
    refused(lambda: model.register_buffer("more", torch.zeros(1)))
    refused(lambda: delattr(model, "head"))
    model.body.insert(0, nn.Identity())  # torch's own writes past every check
    assert "part '0' of the sliced model was replaced by a Identity" in refused(
        lambda: model(batch(IMAGES))
    )

    def add_parameter():
        model.more = nn.Parameter(torch.zeros(1))

    refused(add_parameter)


def test_values_that_may_change_unseen_are_refused_on_layers():
    model = sliced(seeded(Net), [1.0] * world_size())
    before = model.eval()(batch(IMAGES))
    for value in ([2, 2], torch.ones(2)):
        model.stem.stride = value
        text = refused(lambda: model(batch(IMAGES)))
        assert f"a {type(value).__name__} may change unseen" in text
    model.stem.out_channels = 3
    if world_size() > 1:
        assert "out_channels of 'stem' (Conv2d)" in refused(lambda: model(batch(IMAGES)))
        assert torch.equal(model(batch(IMAGES)), before)


def test_the_order_of_settings_does_not_matter():
    """Ranks that set the same values have the same mark, whatever came before."""
    model = sliced(seeded(Net), pick_weights(3))
    first = hetmp.Group().is_root
    model.fade, model.block.slope = (0.5, 3.0) if first else (0.25, 2.0)
    model.block.slope = 3.0
    model.fade = 0.5
    model(batch(IMAGES))
    if world_size() > 1:
        model.fade = 0.5 if first else 1.0
        assert "has other hooks or attributes set" in refused(lambda: model(batch(IMAGES)))


def test_attributes_without_effect_may_differ_by_rank():
    """Only what runs must be alike."""
    model = sliced(seeded(Net), pick_weights(3))
    before = model.eval()(batch(IMAGES))
    first = hetmp.Group().is_root
    if first:
        model.is_first = True
    model.seconds = 0.1 if first else 0.2
    assert torch.equal(model(batch(IMAGES)), before)
    model.block.slope = 3.0
    model(batch(IMAGES))
    if world_size() > 1:
        model.fade = 0.5 if first else 1.0
        assert "has other hooks or attributes set" in refused(lambda: model(batch(IMAGES)))


class Scaled(nn.Module):
    """Parameters of its own, beside layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 6, 3), nn.Parameter(torch.ones(6, 1, 1))
        self.inner = nn.ModuleDict({"a": nn.Conv2d(6, 4, 1)})

    def forward(self, x):
        return self.inner["a"](self.conv(x) * self.scale)


def test_a_state_is_assigned_to_parameters_of_blocks():
    module, other = seeded(Scaled), seeded(Scaled, seed=1)
    model = sliced(module, pick_weights(2))
    model(batch(IMAGES))
    model.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(model(batch(IMAGES)), other(batch(IMAGES)), rtol=1e-10, atol=1e-12)


def test_a_forward_is_not_replaced():
    model = sliced(seeded(Net), [1.0] * world_size())

    def replace(part):
        part.forward = lambda x: x

    for path in ("", "block"):
        text = refused(lambda path=path: replace(model.get_submodule(path)))
        assert "was read when the module was sliced" in text
    replace(model.bn)
    assert "forward of 'bn' was replaced" in refused(lambda: model(batch(IMAGES)))


@pytest.mark.mpi(min_size=2)
def test_a_parameter_of_a_layer_is_not_replaced():
    for shape in [(5, 28), (3, 28)]:
        model = sliced(seeded(Net), [1.0] * world_size())
        model.head.weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        text = refused(lambda model=model: model(batch(IMAGES)))
        assert "parameter head.weight of the sliced model was replaced by one of shape" in text
    model = sliced(seeded(Net), [1.0] * world_size())
    nn.utils.parametrize.register_parametrization(model.head, "weight", nn.Identity())
    text = refused(lambda: model(batch(IMAGES)))
    assert "parameter head.weight of the sliced model was removed" in text


@works("a block called by itself: `model.block(x)`")
def test_a_block_is_not_called_by_itself():
    model = sliced(seeded(Net), pick_weights(2))
    assert "'block' of a sliced model cannot be called" in refused(
        lambda: model.block(batch(IMAGES))
    )
    refused(lambda: model.body(batch(IMAGES)))
    refused(lambda: model.body[:1](batch(IMAGES)))


@works("`copy.deepcopy`, `AveragedModel`")
def test_a_copy_has_attributes_of_its_own():
    module = seeded(Net)
    module.block.drop.p = 0.0
    model, x = sliced(module, plans(module)[0]).eval(), batch(IMAGES)
    copied, before = copy.deepcopy(model), model(x)
    copied.fade, copied.bn.eps = 0.5, 0.5
    module.eval()
    module.fade, module.bn.eps = 0.5, 0.5
    torch.testing.assert_close(copied(x), module(x), rtol=1e-10, atol=1e-12)
    assert torch.equal(model(x), before)
    assert model.fade == 1.0


def test_training_with_every_kind_of_layer():
    module = seeded(Net)
    module.block.drop.p = 0.0
    for plan in plans(module):
        compare_training(module, plan, IMAGES)


class Switching(nn.Module):
    """A module whose modes run other operations, with a norm over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.GroupNorm(1, 6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.head(self.norm(self.conv(x)))
        return x * 2 if self.training else x


def test_a_norm_over_the_ranks_may_be_in_another_mode():
    """It sums over the ranks by a part of its own, and is no block for that."""
    module = seeded(Switching)
    model = sliced(module, [1.0] * world_size())
    model.norm.eval()
    torch.testing.assert_close(model(batch(IMAGES)), module(batch(IMAGES)), rtol=1e-10, atol=1e-12)
