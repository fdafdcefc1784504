"""A norm that sees one value per channel: refused in words on every rank, where torch refuses."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hetmp
from helpers.comparison import WEIGHTS, batch, compare_training, world_size
from helpers.refusing import refused
from helpers.running import TRAIN, hetmp_run
from helpers.running import refused as ended
from helpers.works import works
from hetmp.core.errors import HetmpError
from hetmp.run.batch_sizes import check_batches
from hetmp.run.config import train_config
from hetmp.slicing import read_graph

IMAGES = (1, 3, 4, 4)


class Narrow(nn.Module):
    """A convolution to one pixel an image, a norm, and something behind them."""

    def __init__(self, norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 5, 4), norm
        self.b = nn.Conv2d(5, 4, 1)
        self.double()

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


class Function(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


class Flat(nn.Module):
    """Batch norm of (n, c)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(x.flatten(1))[:, :, None, None]


NORMS = {
    "batch": (lambda: nn.BatchNorm2d(5), r"^'norm' \(BatchNorm2d\): a batch of 1 image of 1 pixel"),
    "without statistics": (
        lambda: nn.BatchNorm2d(5, track_running_stats=False),
        r"^'norm' \(BatchNorm2d\): .*--drop-last in hetmp train, DataLoader\(drop_last=True\)",
    ),
    "flat": (Flat, r"^'norm.norm' \(BatchNorm1d\)"),
    "whole": (lambda: hetmp.leaf(nn.BatchNorm2d(5)), r"^'norm' \(BatchNorm2d\)"),
    "batch function": (
        lambda: Function(lambda x: F.batch_norm(x, None, None, training=True)),
        r"^'batch_norm' .*batch norm needs more than that in training",
    ),
    "instance": (
        lambda: nn.InstanceNorm2d(5, affine=True),
        r"^'norm' \(InstanceNorm2d\): an image of 1 pixel .*instance norm needs more .* larger",
    ),
    "instance function": (lambda: Function(F.instance_norm), "^'instance_norm' .*instance norm"),
}


def sliced(norm) -> tuple[hetmp.SlicedModel, nn.Module]:
    module = Narrow(norm())
    example = torch.empty(2, 3, 6, 6, dtype=torch.float64)
    if norm is Flat:
        example = torch.empty(2, *IMAGES[1:], dtype=torch.float64)
    weights = WEIGHTS["one zero"](world_size())
    return hetmp.slice_model(module, weights, example_input=example), module


@pytest.mark.mpi
@pytest.mark.parametrize("name", NORMS)
@works("a batch norm with one value per channel, or an instance norm of one pixel, in training")
def test_one_value_is_refused_on_every_rank_with_or_without_channels(name):
    norm, words = NORMS[name]
    model, module = sliced(norm)
    images = (3, *IMAGES[1:]) if "instance" in name else IMAGES
    with pytest.raises(ValueError, match="more than 1"):
        module(batch(images))
    assert re.search(words, refused(lambda: model(batch(images))))
    if "instance" not in name:
        x = batch((2, *IMAGES[1:]))
        torch.testing.assert_close(model(x), module(x), rtol=1e-10, atol=1e-12)


@pytest.mark.mpi
@pytest.mark.parametrize("frozen", [False, True])
def test_in_evaluation_one_value_is_enough(frozen):
    """Of the whole model, or of the norm alone."""
    model, module = sliced(NORMS["batch"][0])
    for net in (model, module):
        (net.norm if frozen else net).eval()
    x = batch(IMAGES)
    torch.testing.assert_close(model(x), module(x), rtol=1e-10, atol=1e-12)


@pytest.mark.mpi
def test_two_values_are_enough():
    """Of two images of a pixel, and of one image of two."""
    for shape in ((2, 3, 4, 4), (1, 3, 4, 5)):
        compare_training(Narrow(nn.BatchNorm2d(5)), WEIGHTS["one zero"](world_size()), shape)


# --- hetmp train --------------------------------------------------------------------------------


def graph(side: int, norm: nn.Module):
    return read_graph(Narrow(norm), torch.empty(2, 3, side, side, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "images", "steps", "words"),
    [
        ({"batch_size": 4}, 13, 4, r"the last of the batches of 4 of 13 images is 1 image: 'norm'"),
        ({"batch_size": 1}, 13, 1, r"a batch is 1 image: 'norm' .* \(--batch-size\)$"),
        ({"batch_size": 4}, 1, 1, "a batch is 1 image: 'norm'"),
        ({"batch_size": 4, "accumulate": 4}, 16, 1, "a batch of 4 images has a part of 1 image"),
        ({"batch_size": 5, "accumulate": 3}, 15, 3, "a batch of 5 images has a part of 1 image"),
        ({"batch_size": 8, "accumulate": 2}, 11, 2, "the last batch of 3 images has a part of"),
    ],
)
def test_a_run_that_comes_to_one_image_is_refused(settings, images, steps, words):
    config = train_config(model="digits", data="digits", **settings)
    with pytest.raises(HetmpError, match=words):
        check_batches(config, graph(4, nn.BatchNorm2d(5)), images, steps)
    for enough in (graph(5, nn.BatchNorm2d(5)), graph(4, nn.Identity())):
        check_batches(config, enough, images, steps)


@pytest.mark.parametrize(
    ("settings", "images", "steps"),
    [
        ({"batch_size": 4, "drop_last": True}, 13, 9),
        ({"batch_size": 4}, 13, 3),
        ({"batch_size": 4}, 14, 9),
        ({"batch_size": 4, "accumulate": 2}, 16, 9),
        ({"batch_size": 5, "accumulate": 2}, 15, 9),
        ({"batch_size": 20}, 13, 9),
        ({"batch_size": 13}, 13, 9),
    ],
)
def test_a_run_that_never_comes_to_one_image_is_not(settings, images, steps):
    """For it is dropped, or the run ends before it."""
    config = train_config(model="digits", data="digits", **settings)
    check_batches(config, graph(4, nn.BatchNorm2d(5)), images, steps)


@pytest.mark.parametrize("ranks", [None, 2])
def test_hetmp_train_says_what_to_change_before_the_first_step(ranks):
    args = ("train", "--model", "resnet18", *TRAIN[3:5], "--batch-size", "359", "--steps", "5")
    done = hetmp_run(*args, ranks=ranks)
    ended(done, "the last of the batches of 359 of 1,437 images is 1 image", "--drop-last", code=2)
    assert "step" not in done.stdout
