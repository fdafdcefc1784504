"""The shipped networks, and a user's own by package.module:function."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from hetmp import models
from hetmp.errors import HetmpError

NETWORKS = ["digits", "paper-cifar", "paper-mnist", "vgg11", "vgg16"]

# From the networks' definitions: a layer's weights and biases, added by hand.
CLASSIFIERS_OF_VGG = 25_088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
PARAMETERS = {
    "digits": (9 * 24 + 24) + 2 * 24 + (24 * 9 * 48 + 48) + 2 * 48 + (192 * 10 + 10),
    "paper-mnist": (49 * 60 + 60)
    + (60 * 25 * 120 + 120)
    + (120 * 9 * 240 + 240)
    + (240 * 8 * 8 * 128 + 128)
    + (128 * 10 + 10),
    "paper-cifar": sum(
        9 * before * after + after
        for before, after in pairwise((3, 60, 60, 120, 120, 240, 240, 480, 480))
    )
    + (480 * 2 * 2 * 256 + 256)
    + (256 * 10 + 10),
    "vgg11": sum(
        9 * before * after + after
        for before, after in pairwise((3, 64, 128, 256, 256, 512, 512, 512, 512))
    )
    + CLASSIFIERS_OF_VGG,
    "vgg16": 138_357_544,  # the figure of the published network
}


def test_names_and_catalog_list_every_network_with_its_published_size() -> None:
    assert models.names() == NETWORKS
    rows = {row.name: row for row in models.catalog()}
    assert list(rows) == NETWORKS
    assert {name: row.parameters for name, row in rows.items()} == PARAMETERS
    assert (rows["vgg16"].input_shape, rows["vgg16"].classes) == ((3, 224, 224), 1000)
    assert (rows["paper-mnist"].input_shape, rows["paper-mnist"].classes) == ((1, 28, 28), 10)
    assert all(row.description and "\n" not in row.description for row in rows.values())


def test_vgg16_on_the_meta_device_is_the_published_one() -> None:
    with torch.device("meta"):
        network = models.build("vgg16", (3, 224, 224), 1000)
        logits = network(torch.empty(2, 3, 224, 224))
    assert sum(parameter.numel() for parameter in network.parameters()) == 138_357_544
    assert logits.shape == (2, 1000)
    # The names under which torchvision publishes trained weights.
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["features.28.weight"] == (512, 512, 3, 3)
    assert shapes["classifier.0.weight"] == (4096, 25_088)
    assert shapes["classifier.6.bias"] == (1000,)


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [
        ("digits", (1, 8, 8)),
        ("digits", (3, 4, 5)),
        ("digits", (2, 13, 7)),
        ("paper-mnist", (1, 28, 28)),
        ("paper-mnist", (3, 14, 14)),
        ("paper-mnist", (1, 17, 31)),
        ("paper-cifar", (3, 32, 32)),
        ("paper-cifar", (1, 16, 47)),
        ("vgg11", (3, 32, 32)),
        ("vgg11", (1, 224, 230)),
        ("vgg16", (3, 32, 65)),
        ("vgg16", (3, 224, 224)),
        ("vgg16", (3, 300, 223)),
    ],
)
def test_forward_and_backward_at_several_shapes(name: str, input_shape: tuple[int, ...]) -> None:
    network = models.build(name, input_shape, 7, width=0.1)
    logits = network(torch.randn(2, *input_shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "smallest"), [("digits", 4), ("paper-mnist", 14), ("paper-cifar", 16), ("vgg16", 32)]
)
def test_the_smallest_side_works_and_one_less_is_refused(name: str, smallest: int) -> None:
    network = models.build(name, (3, smallest, smallest), 4, width=0.1)
    assert network(torch.randn(2, 3, smallest, smallest)).shape == (2, 4)
    message = (
        f"{name} cannot take images of {smallest}x{smallest - 1}: "
        f"the smallest side that works is {smallest}"
    )
    with pytest.raises(HetmpError, match=f"^{re.escape(message)}$"):
        models.build(name, (3, smallest, smallest - 1), 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks_are_sequentials_of_plain_layers(name: str) -> None:
    plain = (
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Dropout,
        nn.Flatten,
        nn.Linear,
    )
    network = models.build(name, (3, 32, 32), 10, width=0.1)
    for module in network.modules():
        assert type(module) is nn.Sequential if list(module.children()) else type(module) in plain
    assert [child for child, _ in network.named_children()][:1] == ["features"]


def test_the_head_of_vgg_follows_the_size_of_the_final_map() -> None:
    def head(side: int) -> list[int]:
        with torch.device("meta"):
            network = models.build("vgg11", (3, side, side), 10)
        linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
        return [linears[0].in_features, *(linear.out_features for linear in linears)]

    assert head(32) == [512, 512, 512, 10]
    assert head(223) == [512 * 6 * 6, 512, 512, 10]
    assert head(224) == [512 * 7 * 7, 4096, 4096, 10]
    assert head(448) == [512 * 7 * 7, 4096, 4096, 10]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(0.5, [30, 60, 120, 64]), (0.001, [1, 1, 1, 1]), (2, [120, 240, 480, 256])],
)
def test_width_scales_hidden_channels_only(width: float, expected: list[int]) -> None:
    with torch.device("meta"):
        network = models.build("paper-mnist", (1, 28, 28), 10, width=width)
    outputs = [
        module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    assert outputs == [*expected, 10]


@pytest.mark.parametrize("name", ["paper-cifar", "vgg16"])
def test_the_signal_survives_the_layers_at_the_start(name: str) -> None:
    """With torch's own start what leaves VGG-16's convolutions varies by 1e-6 of the input."""
    torch.manual_seed(0)
    network = models.build(name, (3, 32, 32), 10, width=0.5)
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        spread = network.get_submodule("features")(images).std(dim=0).mean()
    assert 0.05 < spread / images.std(dim=0).mean() < 20


def test_the_same_seed_builds_the_same_parameters() -> None:
    def parameters(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = models.build("digits", (1, 8, 8), 10)
        return nn.utils.parameters_to_vector(network.parameters())

    assert torch.equal(parameters(3), parameters(3))
    assert not torch.equal(parameters(3), parameters(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("paper-cifr", (3, 32, 32), 10), "unknown model 'paper-cifr': did you mean 'paper-cifar'"),
        (("digits", (1, 8, 8), 0), "classes is a whole number, 1 or more, got 0"),
        (("digits", (1, 8, 8), 10.0), "classes is a whole number, 1 or more, got 10.0"),
        (("digits", (1, 8, 8), True), "classes is a whole number, 1 or more, got True"),
        (("digits", (0, 8, 8), 10), "each side of input_shape (0, 8, 8) is a whole number, 1"),
        (("digits", (1,), 10), "such as (3, 32, 32), got (1,)"),
        (("digits", 8, 10), "such as (3, 32, 32), got 8"),
        (("digits", (1, 8), 10), "got input_shape (1, 8) with 1 spatial side"),
    ],
)
def test_bad_input_is_refused_in_words(arguments: tuple[str, object, int], message: str) -> None:
    with pytest.raises(HetmpError, match=re.escape(message)):
        models.build(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf"), "wide", True])
def test_a_bad_width_is_refused(width: float) -> None:
    with pytest.raises(HetmpError, match="width is a finite number above 0, got"):
        models.build("digits", (1, 8, 8), 10, width=width)


MY_NETS = """
import functools
from torch import nn
import my_part

NUMBER = 3

def pixels(input_shape, classes):
    channels, length = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * length, classes))

def not_a_module(input_shape, classes):
    return [input_shape, classes]

def only_classes(classes):
    return nn.Linear(1, classes)

def broken(input_shape, classes):
    raise KeyError("the author's own bug")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a user's modules, that is not yet on the path."""
    (tmp_path / "my_nets.py").write_text(MY_NETS)
    (tmp_path / "my_part.py").write_text("")
    (tmp_path / "my_unfinished.py").write_text("import a_package_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    # Another test's modules of these names lie in another folder.
    for name in ("my_nets", "my_part", "my_unfinished"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_users_function_in_the_current_directory_is_called(folder: Path) -> None:
    network = models.build("my_nets:pixels", (2, 5), 3)
    assert network(torch.randn(4, 2, 5)).shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_net:pixels", "there is no module 'my_net', neither installed nor in "),
        ("my_net.sub:pixels", "there is no module 'my_net', neither installed nor in "),
        ("my_nets.py:pixels", "there is no module 'my_nets.py', neither installed nor in "),
        ("my_unfinished:pixels", "my_unfinished needs 'a_package_nobody_has', which is not inst"),
        ("my_nets:pixel", "my_nets.py'> has no 'pixel'"),
        ("my_nets:NUMBER", "NUMBER is a int, not a function of (input_shape, classes)"),
        ("my_nets:not_a_module", "not_a_module returned a list, it must return a torch.nn.Mod"),
        ("my_nets:only_classes", "it is called with (input_shape, classes)"),
        ("folder/my_nets:pixels", "is not of the form package.module:function"),
        (":pixels", "is not of the form package.module:function"),
        ("my_nets:", "is not of the form package.module:function"),
    ],
)
def test_a_users_function_that_does_not_serve(folder: Path, name: str, message: str) -> None:
    with pytest.raises(HetmpError, match=re.escape(message)) as raised:
        models.build(name, (2, 5), 3)
    assert repr(name) in str(raised.value)


def test_an_exception_of_the_users_own_code_passes_through(folder: Path) -> None:
    with pytest.raises(KeyError, match="the author's own bug"):
        models.build("my_nets:broken", (2, 5), 3)


def test_width_does_not_apply_to_a_users_function(folder: Path) -> None:
    with pytest.raises(HetmpError, match=r"width 0\.5 does not apply to my_nets:pixels"):
        models.build("my_nets:pixels", (2, 5), 3, width=0.5)


def test_listing_networks_and_data_sets_loads_neither_sklearn_nor_mpi(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(entry for entry in sys.path if entry))
    code = (
        "import sys; from hetmp import data, models; models.catalog(); data.names(); "
        "print({'sklearn', 'mpi4py'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
