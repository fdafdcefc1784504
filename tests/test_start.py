"""Initial values that are made layer by layer: on any ranks the same, and as they should be."""

import copy
import math

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import WEIGHTS, world_size
from helpers.saving import ranks, shared, world
from hetmp import models
from hetmp.core.errors import HetmpError
from hetmp.run.config import train_config
from hetmp.run.train import train

pytestmark = pytest.mark.few_ranks

SIZES = {
    "densenet121": (3, 32, 32),
    "digits": (1, 8, 8),
    "hyperspectral": (1, 12, 3, 3),
    "mobilenet_v2": (3, 32, 32),
    "paper-cifar": (3, 16, 16),
    "paper-mnist": (1, 18, 18),
    "resnet18": (3, 32, 32),
    "resnet50": (3, 32, 32),
    "unet": (1, 16, 16),
    "vgg11": (3, 32, 32),
    "vgg16": (3, 32, 32),
}
NARROW = 0.25
"""The width: a network's parameters are a sixteenth of its own."""


def outline(name: str, width: float = NARROW) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, SIZES[name], 5, width=width)


def started(module: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every parameter's value, as ``slice_model`` asks for it, on one process without MPI."""
    init = models.layer_by_layer(module)
    return {
        name: init(name, parameter.shape, torch.Generator().manual_seed(seed + number))
        for number, (name, parameter) in enumerate(module.named_parameters())
    }


def test_every_shipped_network_is_looked_at():
    assert sorted(SIZES) == models.names()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_parameter_gets_a_value_as_its_layer_would_give_it(name):
    module = outline(name)
    before = torch.get_rng_state()
    values = started(module)
    assert torch.equal(torch.get_rng_state(), before)  # dropout and the like draw from it
    assert all(parameter.is_meta for parameter in module.parameters())
    whole = models.build(name, SIZES[name], 5, width=NARROW)
    kinds = dict(whole.named_modules())
    for path, parameter in whole.named_parameters():
        value, layer = values[path], kinds[path.rpartition(".")[0]]
        assert value.shape == parameter.shape and value.dtype == parameter.dtype, path
        assert not value.is_meta and torch.isfinite(value).all(), path
        if value.numel() < 400 or value.ndim == 1:
            continue
        if type(layer) is nn.Conv2d or type(layer) is nn.Conv3d:
            he = math.sqrt(2 / value[0].numel())
            assert float(value.std()) == pytest.approx(he, rel=0.15), path
        else:  # as torch starts it
            usual = float(parameter.detach().std())
            assert float(value.std()) == pytest.approx(usual, rel=0.15), path
        assert abs(float(value.mean())) < 5 * float(value.std()) / math.sqrt(value.numel()), path
    biases = [path for path in values if path.endswith(".bias")]
    for path in biases:
        layer = kinds[path.rpartition(".")[0]]
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert not values[path].any(), path
    norms = [m for m in kinds if isinstance(kinds[m], nn.BatchNorm2d | nn.BatchNorm3d)]
    assert all((values[f"{path}.weight"] == 1).all() for path in norms)


def test_the_generator_alone_decides():
    module = outline("digits")
    one, again, other = started(module), started(module), started(module, seed=100)
    weights = [name for name, value in one.items() if value.ndim > 1]
    assert weights
    for name in weights:
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])
    twins = nn.Sequential(nn.Linear(40, 30), nn.Linear(40, 30)).to("meta")
    made = started(twins)
    assert not torch.equal(made["0.weight"], made["1.weight"])


class Scaled(nn.Module):
    """A layer of one's own that does not say how it starts."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Started(Scaled):
    """One that does."""

    def __init__(self) -> None:
        super().__init__()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.factor.fill_(0.5)


@pytest.mark.mpi
def test_a_layer_that_does_not_say_how_it_starts_is_refused(tmp_path):
    for layer in (Scaled, Started):
        with torch.device("meta"):
            module = nn.Sequential(nn.Conv2d(3, 3, 1), layer(), nn.Flatten(), nn.Linear(12, 2))
        weights = WEIGHTS["70:25:5"](world_size())
        told = {"init": models.layer_by_layer(module), "device": "cpu"}
        told["example_input"] = torch.empty(2, 3, 2, 2, device="meta")
        if layer is Scaled:
            with pytest.raises(HetmpError, match=r"1\.factor belongs to a Scaled, which has no"):
                hetmp.slice_model(module, weights, **told)
        else:
            merged = hetmp.merge_model(hetmp.slice_model(module, weights, **told))
            assert (merged["1.factor"] == 0.5).all()


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["digits", "hyperspectral", "mobilenet_v2", "unet", "vgg11"])
def test_values_do_not_depend_on_the_ranks(name):
    merged = []
    for kind in (None, *sorted(WEIGHTS)):
        module = outline(name, width=0.1)
        weights = [1.0] if kind is None else WEIGHTS[kind](world_size())
        comm = ranks([0]) if kind is None else world()
        if comm is not None:
            torch.manual_seed(7 + world().rank)  # rank 0's decides
            model = hetmp.slice_model(
                module,
                weights,
                comm,
                example_input=torch.empty(2, *SIZES[name], device="meta"),
                init=models.layer_by_layer(module),
                device="cpu",
            )
            merged.append(hetmp.merge_model(model, root=0))
        hetmp.Group(world()).meet()
    if world().rank == 0:
        alone, *others = merged
        assert alone.keys() == outline(name, width=0.1).state_dict().keys()
        assert len(others) == len(WEIGHTS)
        for other in others:
            assert other.keys() == alone.keys()
            for path, value in alone.items():
                assert torch.equal(other[path], value), path


@pytest.mark.mpi
def test_a_run_that_starts_layer_by_layer_has_one_curve_on_any_ranks(tmp_path):
    folder = shared(tmp_path)
    told = {"model": "digits", "data": "digits", "dtype": "float64", "steps": 4, "seed": 3}
    found = {}
    for out, comm, how in (
        ("alone", ranks([0]), {"layerwise": True}),
        ("all", world(), {"layerwise": True, "weights": WEIGHTS["70:25:5"](world_size())}),
        ("whole", world(), {}),
    ):
        if comm is not None:
            found[out] = train(train_config(out=folder / out, **told, **how), comm).loss
        hetmp.Group(world()).meet()
    alone = world().bcast(found.get("alone"))
    assert found["all"] == pytest.approx(alone, rel=1e-9)
    assert found["whole"] != pytest.approx(alone, rel=1e-3)  # another stream of numbers


def test_the_module_is_left_as_it_was():
    module = outline("digits")
    kept = copy.deepcopy(module)
    started(module)
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in kept.named_parameters()]
    assert all(value.is_meta for value in module.state_dict().values())
