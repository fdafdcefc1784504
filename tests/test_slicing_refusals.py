"""What a sliced model cannot do is refused on every rank at once, with one message."""

import re

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import batch, make_plan, world_size
from helpers.refusing import mine, refused

pytestmark = pytest.mark.mpi

IMAGES = (4, 3, 6, 6)


def small(channels: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 5, 2)).double()


# --- weights and plans --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (lambda ranks: [1] * (ranks + 1), r"(\d) weights .* for (\d) rank"),
        (lambda ranks: [], "no weights"),
        (lambda ranks: [0] * ranks, "all weights are 0"),
        (lambda ranks: [float("nan")] * ranks, "weight nan of rank 0"),
        (lambda ranks: [1] * (ranks - 1) + [-2], r"weight -2 of rank \d"),
        (lambda ranks: [float("inf")] * ranks, "weight inf of rank 0"),
        (lambda ranks: ["fast"] * ranks, "weight 'fast' of rank 0"),
        (lambda ranks: None, "weights"),
        (lambda ranks: 3, "weights"),
    ],
)
def test_weights_that_cannot_be_used(weights, named):
    text = refused(lambda: hetmp.slice_model(small(), weights(world_size())))
    assert re.search(named, text)


def test_weights_of_another_length_on_one_rank():
    ranks = world_size()
    weights = mine([1] * ranks, [1] * (ranks + 1))
    text = refused(lambda: hetmp.slice_model(small(), weights))
    assert f"{ranks + 1} weights" in text
    if ranks > 1:
        assert text.startswith(f"rank {ranks - 1}: ")


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("rank", [0, -1])
def test_other_weights_on_one_rank(rank):
    ranks = world_size()
    weights = mine([1] * ranks, [9] + [1] * (ranks - 1), rank=rank)
    text = refused(lambda: hetmp.slice_model(small(), weights))
    assert "different plan or weights" in text


def test_a_plan_for_another_number_of_ranks():
    ranks = world_size()
    plan = make_plan(small(), [1] * (ranks + 2))
    text = refused(lambda: hetmp.slice_model(small(), plan))
    assert f"the plan is for {ranks + 2} ranks, this job has {ranks}" in text


def test_a_plan_for_another_model():
    plan = make_plan(small(channels=11), [1] * world_size())
    text = refused(lambda: hetmp.slice_model(small(), plan))
    assert "plan is for another model" in text
    assert "'0' (Conv2d)" in text
    assert "11" in text
    assert "7" in text


def test_a_plan_that_cuts_a_group_of_a_convolution():
    ranks = world_size()
    module = nn.Sequential(nn.Conv2d(3, 2 * ranks, 1), nn.Conv2d(2 * ranks, 4 * ranks, 3, groups=2))
    counts = [3, 5] + [4] * (ranks - 2) if ranks > 1 else [4]
    plan = hetmp.plan_from_weights(hetmp.read_graph(module), [1] * ranks)
    if ranks == 1:
        hetmp.slice_model(module, plan)
        return
    plan = plan.with_layer("1", counts=counts)
    text = refused(lambda: hetmp.slice_model(module, plan))
    assert re.search(r"cuts layer '1' \(Conv2d\) into sliced 3/5.*one of its 2 groups", text)


# --- modules ------------------------------------------------------------------------------------

UNLIKE = {
    "channels": lambda: small(channels=11),
    "dtype": lambda: small().float(),
    "kernel": lambda: nn.Sequential(nn.Conv2d(3, 7, 2), nn.ReLU(), nn.Conv2d(7, 5, 2)).double(),
    "name": lambda: nn.Sequential(nn.Sequential(*small())),
    "stride": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3, stride=2), nn.ReLU(), nn.Conv2d(7, 5, 2)
    ).double(),
    "activation": lambda: nn.Sequential(nn.Conv2d(3, 7, 3), nn.Tanh(), nn.Conv2d(7, 5, 2)).double(),
    "dropout": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.Dropout(0.1), nn.Conv2d(7, 5, 2)
    ).double(),
    "frozen": lambda: small().requires_grad_(False),
    "frozen in part": lambda: nn.Sequential(small()[0].requires_grad_(False), *small()[1:]),
    "training": lambda: small().eval(),
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("what", UNLIKE)
def test_another_module_on_one_rank(what):
    """Also where parameters are alike: the ranks would wait for each other, or train garbage."""
    module = mine(small(), UNLIKE[what]())
    text = refused(lambda: hetmp.slice_model(module, [1] * world_size()))
    assert re.search(rf"rank {world_size() - 1} .*a different module", text)


@pytest.mark.mpi(min_size=2)
def test_an_example_input_on_one_rank_only():
    """With it, the gather comes after the flattening, without it before."""
    module = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Flatten())
    example = mine(None, torch.zeros(IMAGES))
    refused(lambda: hetmp.slice_model(module, [1] * world_size(), example_input=example))


class Raises(nn.Module):
    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.raises = raises

    def forward(self, x):
        if self.raises:
            raise ZeroDivisionError("on purpose")
        return self.conv(x)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_module_that_raises_on_one_rank_alone(rank):
    module = Raises(mine(False, True, rank=rank))
    text = refused(lambda: hetmp.slice_model(module, [1] * world_size()))
    assert "on purpose" in text
    if world_size() > 1:
        assert text.startswith(f"rank {rank % world_size()}: ")


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (lambda: nn.Sequential(nn.GRU(3, 4)), "Sequential.* give slice_model an example_input"),
        (lambda: nn.Sequential(nn.ReLU()), "no convolution or linear layer"),
        (lambda: 3, "nn.Module"),
        (lambda: nn.Sequential(nn.ReLU()).forward, "nn.Module"),
    ],
)
def test_modules_that_cannot_be_sliced(module, named):
    text = refused(lambda: hetmp.slice_model(module(), [1] * world_size()))
    assert re.search(named, text)


def test_a_child_that_hides_hetmps_own():
    module = nn.Sequential()
    module.add_module("hetmp", nn.Conv2d(3, 7, 3))
    text = refused(lambda: hetmp.slice_model(module, [1] * world_size()))
    assert "'hetmp'" in text
    assert "rename" in text


def test_a_device_that_is_none():
    text = refused(lambda: hetmp.slice_model(small(), [1] * world_size(), device="gpu"))
    assert "unknown device 'gpu'" in text


# --- modules without values ---------------------------------------------------------------------


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7))


def test_a_module_without_values_needs_an_init():
    text = refused(lambda: hetmp.slice_model(on_meta(), [1] * world_size()))
    assert re.search("'0.weight' is on the meta device.* init", text)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda shape: torch.zeros(2), r"init returned \(2,\) for '0.weight'.*\(7, 3, 3, 3\)"),
        (lambda shape: 3.0, "init returned float for '0.weight'"),
        (lambda shape: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_an_init_that_does_not_fit(value, named):
    def init(name, shape, generator):
        return value(shape)

    text = refused(lambda: hetmp.slice_model(on_meta(), [1] * world_size(), init=init))
    assert re.search(named, text)


def test_an_init_that_fails_on_one_rank_alone():
    def init(name, shape, generator):
        return torch.zeros(shape if name == "0.weight" else mine(shape, (1, 2)))

    text = refused(lambda: hetmp.slice_model(on_meta(), [1] * world_size(), init=init))
    assert "'0.bias'" in text


def test_an_init_for_a_module_with_values():
    def init(name, shape, generator):
        return torch.zeros(shape)

    text = refused(lambda: hetmp.slice_model(small(), [1] * world_size(), init=init))
    assert "this one has values" in text


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("rank", [0, -1])
def test_an_init_on_one_rank_only(rank):
    def init(name, shape, generator):
        return torch.zeros(shape)

    given = mine(init, None, rank=rank)
    refused(lambda: hetmp.slice_model(on_meta(), [1] * world_size(), init=given))


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("what", "rank", "step"),
    [
        ("values", -1, 0),
        ("values", -1, 1),
        ("values", 0, 2),
        ("one sample", -1, 0),
        ("order", 1, 0),
        ("shape", -1, 0),
        ("shape", 0, 2),
        ("size", 1, 1),
        ("flat", -1, 0),
    ],
)
def test_other_batches_on_one_rank(what, rank, step):
    """In each of the first steps, whichever rank it is."""
    model = hetmp.slice_model(small(), [1] * world_size())
    for earlier in range(step):
        model(batch(IMAGES, earlier))
    x = batch(IMAGES, 50)
    other = {
        "values": batch(IMAGES, 51),
        "one sample": torch.cat([x[:-1], batch(IMAGES, 51)[-1:]]),
        "order": x[[1, 0, 2, 3]],
        "shape": batch((4, 3, 6, 7)),
        "size": x[:3],
        "flat": x.flatten(1),
    }[what]
    text = refused(lambda: model(mine(x, other, rank=rank)))
    assert "batch" in text
    assert "rank" in text
    if what in ("shape", "size", "flat"):
        assert re.search(r"shape \(4, .*\(|shape \([34], ", text)


def test_the_same_batch_in_another_layout_in_memory_is_the_same():
    model = hetmp.slice_model(small(), [1] * world_size())
    x = batch(IMAGES)
    other = x.contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(model(mine(x, other))).all()
    special = torch.full(IMAGES, float("nan"), dtype=torch.float64)
    assert model(special).isnan().all()
    assert torch.isfinite(model(torch.zeros(IMAGES, dtype=torch.float64))).all()


def test_a_sample_without_its_batch_axis():
    model = hetmp.slice_model(small(), [1] * world_size())
    text = refused(lambda: model(batch(IMAGES[1:])), kind=hetmp.HetmpError)
    assert re.search(r"batches of 4 dimensions.*\(3, 6, 6\)", text)


def test_a_batch_that_does_not_fit_the_model():
    model = hetmp.slice_model(small(), [1] * world_size())
    with pytest.raises(Exception, match="channels"):
        model(batch((4, 2, 6, 6)))


def test_a_model_works_on_after_a_refusal():
    model = hetmp.slice_model(small(), [1] * world_size())
    refused(lambda: model(batch(IMAGES[1:])), kind=hetmp.HetmpError)
    torch.testing.assert_close(model(batch(IMAGES)), small()(batch(IMAGES)), rtol=1e-10, atol=1e-12)
