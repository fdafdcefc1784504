"""The shipped networks, and a user's own by package.module:function."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from hetmp import models
from hetmp.core.errors import HetmpError
from hetmp.models.densenet import DenseBlock
from hetmp.models.mobilenet import InvertedResidual
from hetmp.models.resnet import BasicBlock, Bottleneck

CHAINS = ["digits", "paper-cifar", "paper-mnist", "vgg11", "vgg16"]
BRANCHED = ["densenet121", "mobilenet_v2", "resnet18", "resnet50", "unet"]
NETWORKS = sorted([*CHAINS, *BRANCHED, "hyperspectral"])

# From the networks' definitions: a layer's weights and biases, added by hand.
CLASSIFIERS_OF_VGG = 25_088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
PARAMETERS = {
    # The figures of the published networks.
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
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
    # Two convolutions and their norms on each level down and up, the way up, the head.
    "unet": sum(
        9 * before * after + 2 * after + 9 * after * after + 2 * after
        for before, after in (
            *pairwise((1, 64, 128, 256, 512, 1024)),
            *((2 * after, after) for after in (512, 256, 128, 64)),
        )
    )
    + sum(4 * 2 * after * after + after for after in (512, 256, 128, 64))
    + (64 * 2 + 2),
    "hyperspectral": (7 * 9 * 16 + 2 * 16)
    + (16 * 5 * 9 * 32 + 2 * 32)
    + (32 * 3 * 9 * 64 + 2 * 64)
    + (64 * 16 + 16),
}


def test_names_and_catalog_list_every_network_with_its_published_size() -> None:
    assert models.names() == NETWORKS
    rows = {row.name: row for row in models.catalog()}
    assert list(rows) == NETWORKS
    assert {name: row.parameters for name, row in rows.items()} == PARAMETERS
    assert (rows["vgg16"].input_shape, rows["vgg16"].classes) == ((3, 224, 224), 1000)
    assert (rows["paper-mnist"].input_shape, rows["paper-mnist"].classes) == ((1, 28, 28), 10)
    assert (rows["hyperspectral"].input_shape, rows["hyperspectral"].classes) == (
        (1, 200, 9, 9),
        16,
    )
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
    ("name", "smallest"),
    [("digits", 4), ("paper-mnist", 14), ("paper-cifar", 16), ("vgg16", 32), ("densenet121", 8)],
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


@pytest.mark.parametrize("name", CHAINS)
def test_shipped_chains_are_sequentials_of_plain_layers(name: str) -> None:
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


# Names and shapes from torchvision's networks of these names.
PUBLISHED_NAMES = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_mean": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.bias": (128,),
        "layer4.1.bn2.weight": (512,),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "layer4.0.conv2.weight": (512, 512, 3, 3),
        "layer4.2.bn3.running_var": (2048,),
        "fc.bias": (1000,),
    },
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.weight": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.weight": (16,),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.17.conv.3.running_mean": (320,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
    "densenet121": {
        "features.conv0.weight": (64, 3, 7, 7),
        "features.norm0.weight": (64,),
        "features.denseblock1.denselayer1.norm1.weight": (64,),
        "features.denseblock4.denselayer16.conv1.weight": (128, 992, 1, 1),
        "features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3),
        "features.transition1.norm.weight": (256,),
        "features.transition1.conv.weight": (128, 256, 1, 1),
        "features.norm5.weight": (1024,),
        "classifier.weight": (1000, 1024),
    },
}
ENTRIES = {"resnet18": 122, "resnet50": 320, "mobilenet_v2": 314, "densenet121": 727}


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_weights_find_their_layers(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name, (3, 224, 224), 1000)
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {key: shapes.get(key) for key in PUBLISHED_NAMES[name]} == PUBLISHED_NAMES[name]
    assert len(shapes) == ENTRIES[name]


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [
        *((name, (2, 16, 16)) for name in BRANCHED),
        *((name, (1, 13, 21)) for name in BRANCHED if name != "unet"),
        *((name, (3, 64, 70)) for name in BRANCHED),
        ("unet", (1, 8, 8)),
        ("unet", (1, 6, 20)),
        ("hyperspectral", (1, 200, 3, 3)),
        ("hyperspectral", (2, 1, 1, 4)),
    ],
)
def test_a_batch_in_and_a_gradient_to_every_parameter(
    name: str, input_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = models.build(name, input_shape, 5, width=0.1)
    images = torch.randn(4, *input_shape)
    output = network(images)
    places = input_shape[1:] if name == "unet" else ()
    assert output.shape == (4, 5, *places)
    nn.functional.cross_entropy(output, torch.randint(5, (4, *places))).backward()
    assert [key for key, value in network.named_parameters() if not value.grad.any()] == []


@pytest.mark.parametrize("name", [*BRANCHED, "hyperspectral"])
def test_fx_traces_the_network(name: str) -> None:
    input_shape = (1, 9, 4, 4) if name == "hyperspectral" else (1, 16, 16)
    network = models.build(name, input_shape, 3, width=0.1).eval()
    images = torch.randn(2, *input_shape)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(network)(images), network(images))


def final_map(name: str, side: int) -> tuple[int, ...]:
    """What the average before the last layer is taken over, for images of that *side*."""
    seen = []
    with torch.device("meta"):
        network = models.build(name, (3, side, side), 10, width=0.1)
        pool = network.get_submodule("avgpool")
        pool.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
        network(torch.empty(2, 3, side, side))
    return seen[0]


@pytest.mark.parametrize("name", [name for name in BRANCHED if name != "unet"])
def test_a_small_image_keeps_more_of_its_map(name: str) -> None:
    assert final_map(name, 32) == (4, 4)
    assert final_map(name, 64) == (2, 2)
    assert final_map(name, 224) == (7, 7)
    # Pooling rounds down, a stride up.
    assert final_map(name, 63) == ((7, 7) if name == "densenet121" else (8, 8))


def test_the_small_variant_of_mobilenet_leaves_out_the_first_two_halvings() -> None:
    def halving(side: int) -> list[str]:
        with torch.device("meta"):
            network = models.build("mobilenet_v2", (3, side, side), 10)
        return [
            ".".join(name.split(".")[:2])
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2)
        ]

    published = [f"features.{number}" for number in (0, 2, 4, 7, 14)]
    assert halving(64) == published
    assert halving(63) == published[2:]


@pytest.mark.parametrize("shape", [(3, 63, 300), (3, 300, 63)])
def test_one_side_makes_an_image_small(shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        stem = models.build("resnet18", shape, 10).get_submodule("conv1")
    assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_a_residual_block_adds_to_its_input(block: type[nn.Module], last: str) -> None:
    x = torch.randn(2, 4 * block.expansion, 6, 6)
    inner = block(x.shape[1], 4, 1)
    nn.init.zeros_(inner.get_submodule(last).weight)
    assert torch.equal(inner(x), x.relu())
    strided = block(x.shape[1], 8, 2)
    nn.init.zeros_(strided.get_submodule(last).weight)
    assert torch.equal(strided(x), strided.downsample(x).relu())
    assert strided(x).shape == (2, 8 * block.expansion, 3, 3)


def test_an_inverted_residual_adds_where_it_keeps_the_shape() -> None:
    x = torch.randn(2, 4, 6, 6)
    for after, stride, expected in ((4, 1, x), (4, 2, 0 * x[:, :, ::2, ::2]), (3, 1, 0 * x[:, :3])):
        block = InvertedResidual(4, after, stride, expansion=6)
        nn.init.zeros_(block.conv[-1].weight)
        assert torch.equal(block(x), expected)


def test_a_dense_layer_reads_everything_before_it() -> None:
    block = DenseBlock(5, depth=3, growth=2).eval()
    x = torch.randn(2, 5, 4, 4)
    with torch.no_grad():
        out = block(x)
        assert torch.equal(out[:, :5], x)
        for number, read in ((1, 5), (2, 7), (3, 9)):
            made = block[f"denselayer{number}"](out[:, :read])
            assert torch.equal(out[:, read : read + 2], made)
    assert out.shape == (2, 11, 4, 4)


@pytest.mark.parametrize(
    ("image", "poolings"),
    [((8, 8), 3), ((2, 2), 1), ((100, 100), 2), ((16, 48), 4), ((64, 64), 4), ((32, 6), 1)],
)
def test_unet_pools_as_often_as_the_sides_can_be_halved(
    image: tuple[int, int], poolings: int
) -> None:
    with torch.device("meta"):
        network = models.build("unet", (3, *image), 7)
        assert network(torch.empty(2, 3, *image)).shape == (2, 7, *image)
    pools = [module for module in network.modules() if isinstance(module, nn.MaxPool2d)]
    assert len(pools) == poolings
    widest = max(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    assert widest == 64 * 2**poolings


def test_unet_passes_each_level_by_the_ones_below() -> None:
    """With nothing coming up, a pixel reaches the output on its own level, so nearby only."""
    network = models.build("unet", (1, 16, 16), 2, width=0.1).eval()
    image = torch.randn(1, 1, 16, 16, requires_grad=True)
    network(image)[0, 0, 8, 8].backward()
    assert image.grad[0, 0, 0, 0] != 0
    image.grad = None
    for up in network.get_submodule("up"):
        nn.init.zeros_(up.weight)
    network(image)[0, 0, 8, 8].backward()
    reached = image.grad[0, 0].nonzero()  # two convolutions down, two up: 4 pixels each way
    assert (reached.amin(dim=0).tolist(), reached.amax(dim=0).tolist()) == ([4, 4], [12, 12])


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


def test_width_scales_every_hidden_channel_of_a_branched_network() -> None:
    def channels(name: str) -> list[int]:
        with torch.device("meta"):
            network = models.build(name, (3, 64, 64), 10, width=0.25)
        return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]

    assert channels("resnet50")[0] == 16
    assert max(channels("resnet50")) == 512
    assert (channels("mobilenet_v2")[0], channels("mobilenet_v2")[-1]) == (8, 320)
    assert (channels("densenet121")[0], channels("densenet121")[2]) == (16, 8)
    assert (channels("unet")[0], max(channels("unet")), channels("unet")[-1]) == (16, 256, 10)


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
        (
            ("hyperspectral", (200, 9, 9), 16),
            "hyperspectral takes images with 3 spatial sides, such as (1, 200, 9, 9), got "
            "input_shape (200, 9, 9) with 2 spatial side(s)",
        ),
        (("unet", (1, 1, 8, 8), 2), "unet takes images with 2 spatial sides, such as (1, 512"),
        (
            ("unet", (1, 8, 9), 2),
            "unet cannot take images of 8x9: the width 9 is odd; crop or pad it to a multiple of "
            "2 for one pooling, of 16 for all four",
        ),
        (("unet", (1, 1, 8), 2), "unet cannot take images of 1x8: the height 1 is odd"),
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
        ("my_nets:pixel", "my_nets.py) has no 'pixel': did you mean 'my_nets:pixels'?"),
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
