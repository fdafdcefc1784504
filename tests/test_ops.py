"""Every layer that has a rule, sliced and trained: equal to the unsliced module."""

import pytest
from torch import nn

from cases.axes import Layers
from cases.grouped_layers import GROUPED
from cases.norms import NORMS
from cases.unpooling import Remembering
from helpers.comparison import (
    compare_training,
    make_plan,
    pick_weights,
    plan_on_images,
    seeded,
)
from hetmp.ops import LAYERS, rule_for

CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
SIZES = {3: (3, 3, 10), 4: (3, 3, 7, 9), 5: (2, 3, 4, 6, 5)}


def between(dims: int, *layers: nn.Module, channels: int = 7) -> nn.Sequential:
    """Layers that take 7 channels and give *channels*, between two convolutions."""
    conv = CONV[dims]
    return nn.Sequential(conv(3, 7, 1), nn.Tanh(), *layers, conv(channels, 5, 1))


# Each takes 7 channels and gives 11 where it mixes them, 7 where it does not.
MIXING = {
    "conv1d": (3, lambda: nn.Conv1d(7, 11, 3)),
    "conv1d-same-dilated": (3, lambda: nn.Conv1d(7, 11, 3, padding="same", dilation=2)),
    "conv1d-no-bias": (3, lambda: nn.Conv1d(7, 11, 2, stride=2, bias=False)),
    "conv2d": (4, lambda: nn.Conv2d(7, 11, 3)),
    "conv2d-stride": (4, lambda: nn.Conv2d(7, 11, 3, stride=2, padding=1)),
    "conv2d-oblong": (4, lambda: nn.Conv2d(7, 11, (3, 1), stride=(1, 2), padding=(0, 2))),
    "conv2d-dilated": (4, lambda: nn.Conv2d(7, 11, 2, dilation=(2, 3))),
    "conv2d-same-even": (4, lambda: nn.Conv2d(7, 11, (2, 3), padding="same")),
    "conv2d-valid": (4, lambda: nn.Conv2d(7, 11, 2, padding="valid", bias=False)),
    "conv2d-circular": (4, lambda: nn.Conv2d(7, 11, 3, padding=1, padding_mode="circular")),
    "conv2d-reflect": (4, lambda: nn.Conv2d(7, 11, 3, padding=(2, 1), padding_mode="reflect")),
    "conv2d-replicate": (4, lambda: nn.Conv2d(7, 11, 3, padding=1, padding_mode="replicate")),
    "conv3d": (5, lambda: nn.Conv3d(7, 11, (1, 3, 2))),
    "conv3d-stride": (5, lambda: nn.Conv3d(7, 11, 2, stride=2, padding=1, bias=False)),
    "transposed1d": (3, lambda: nn.ConvTranspose1d(7, 11, 3, stride=2, output_padding=1)),
    "transposed2d": (
        4,
        lambda: nn.ConvTranspose2d(7, 11, 3, stride=2, padding=1, output_padding=(1, 0)),
    ),
    "transposed2d-dilated": (4, lambda: nn.ConvTranspose2d(7, 11, 2, dilation=2, bias=False)),
    "transposed3d": (5, lambda: nn.ConvTranspose3d(7, 11, (1, 2, 2), stride=(1, 2, 1))),
}

CHANNELWISE = {
    "norm1d": (3, lambda: nn.BatchNorm1d(7)),
    "norm2d": (4, lambda: nn.BatchNorm2d(7, eps=1e-3, momentum=0.3)),
    "norm2d-no-affine": (4, lambda: nn.BatchNorm2d(7, affine=False)),
    "norm2d-cumulative": (4, lambda: nn.BatchNorm2d(7, momentum=None)),
    "norm2d-no-statistics": (4, lambda: nn.BatchNorm2d(7, track_running_stats=False)),
    "norm2d-bare": (4, lambda: nn.BatchNorm2d(7, affine=False, track_running_stats=False)),
    "norm3d": (5, lambda: nn.BatchNorm3d(7)),
    "prelu-one": (4, lambda: nn.PReLU()),
    "prelu-per-channel": (4, lambda: nn.PReLU(7)),
    "prelu-per-channel-1d": (3, lambda: nn.PReLU(7)),
    "softmax": (4, lambda: nn.Softmax(dim=1)),
    "softmax-last": (4, lambda: nn.Softmax(dim=-1)),
    "log-softmax": (3, lambda: nn.LogSoftmax(dim=1)),
    "softmin": (3, lambda: nn.Softmin(dim=-2)),
}

# Two or three at a time, each on channels that are cut in its own way.
POOLING = {
    "max1d, avg1d": (3, lambda: (nn.MaxPool1d(3, stride=2, padding=1), nn.AvgPool1d(2))),
    "lp1d, adaptive1d": (
        3,
        lambda: (nn.LPPool1d(2, 3), nn.AdaptiveMaxPool1d(3), nn.AdaptiveAvgPool1d(2)),
    ),
    "max2d, avg2d": (
        4,
        lambda: (
            nn.MaxPool2d(2),
            nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        ),
    ),
    "lp2d, max2d-ceil": (
        4,
        lambda: (
            nn.LPPool2d(2, (2, 3), stride=1),
            nn.MaxPool2d((3, 2), stride=2, ceil_mode=True, dilation=(1, 2)),
        ),
    ),
    "adaptive2d": (4, lambda: (nn.AdaptiveMaxPool2d((2, None)), nn.AdaptiveAvgPool2d((3, 2)))),
    "max3d, avg3d": (5, lambda: (nn.MaxPool3d(2, stride=1), nn.AvgPool3d((2, 1, 2)))),
    "adaptive3d": (5, lambda: (nn.AdaptiveMaxPool3d((3, 2, 2)), nn.AdaptiveAvgPool3d(1))),
    "lp3d": (5, lambda: (nn.LPPool3d(2, (1, 2, 2)),) if hasattr(nn, "LPPool3d") else ()),
}

ELEMENTWISE = (
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.1),
    nn.ELU(),
    nn.SELU(),
    nn.CELU(0.5),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-0.3, 0.3),
    nn.Hardshrink(0.1),
    nn.Softshrink(0.1),
    nn.Tanhshrink(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    nn.Tanh(),
    nn.Softplus(beta=2),
    nn.Softsign(),
    nn.Threshold(0.1, -0.2),
    nn.Identity(),
)

# Each takes 8 channels; with what it gives.
RESAMPLING = {
    "nearest-size": (4, 8, lambda: nn.Upsample(size=(5, 11))),
    "bilinear-scale": (4, 8, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "bicubic-corners": (
        4,
        8,
        lambda: nn.Upsample(scale_factor=(1.5, 2), mode="bicubic", align_corners=True),
    ),
    "linear-1d": (3, 8, lambda: nn.Upsample(size=17, mode="linear")),
    "trilinear": (5, 8, lambda: nn.Upsample(scale_factor=(2, 1, 1), mode="trilinear")),
    "upsampling-nearest": (4, 8, lambda: nn.UpsamplingNearest2d(scale_factor=2)),
    "upsampling-bilinear": (4, 8, lambda: nn.UpsamplingBilinear2d(size=(6, 4))),
    "shuffle": (4, 2, lambda: nn.PixelShuffle(2)),
    "shuffle-one-channel": (4, 1, lambda: nn.Sequential(nn.Conv2d(8, 9, 1), nn.PixelShuffle(3))),
    "unshuffle": (4, 72, lambda: nn.Sequential(nn.ZeroPad2d((0, 0, 1, 1)), nn.PixelUnshuffle(3))),
    "channel-shuffle": (4, 8, lambda: nn.ChannelShuffle(2)),
    "channel-shuffle-4": (3, 8, lambda: nn.ChannelShuffle(4)),
    "glu": (4, 4, lambda: nn.GLU(dim=1)),
    "softmax-2d": (4, 8, lambda: nn.Softmax2d()),
    "local-response": (4, 8, lambda: nn.LocalResponseNorm(3, alpha=0.1)),
    "cross-map-response": (4, 8, lambda: nn.CrossMapLRN2d(3, alpha=0.1)),
    "unflatten-groups": (4, 8, lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2))),
    "unflatten-blocks": (4, 8, lambda: nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Flatten(1, 2))),
    "unflatten-space": (4, 8, lambda: nn.Sequential(nn.Unflatten(3, (-1, 3)), nn.Flatten(2, 3))),
}

PADDING = (
    nn.ZeroPad1d((2, 1)),
    nn.ConstantPad1d(1, 0.5),
    nn.ReflectionPad1d((1, 3)),
    nn.ReplicationPad1d((0, 2)),
    nn.CircularPad1d((2, 0)),
    nn.ZeroPad2d((1, 0, 0, 2)),
    nn.ConstantPad2d((0, 1, 1, 0), -0.5),
    nn.ReflectionPad2d(1),
    nn.ReplicationPad2d((2, 0, 1, 0)),
    nn.CircularPad2d((0, 1, 0, 2)),
    nn.ZeroPad3d((0, 1, 0, 1, 1, 0)),
    nn.ConstantPad3d((0, 0, 1, 0, 0, 1), 0.5),
    nn.ReflectionPad3d((1, 0, 0, 1, 1, 0)),
    nn.ReplicationPad3d((0, 0, 1, 1, 0, 0)),
    nn.CircularPad3d((1, 0, 0, 0, 0, 1)),
)

# The state of what the operator takes: sliced, reduced from summands, full.
THROUGH = {
    "filters": ("filters",),
    "inputs": ("inputs",),
    "whole": ("whole", "whole", "filters"),
    "from-whole": ("whole", "filters", "inputs"),
    "to-inputs": ("filters", "inputs", "inputs"),
    "inputs-filters": ("inputs", "filters", "whole"),
}


def check(module, dims, number, schemes):
    compare_training(module, make_plan(module, pick_weights(number), schemes), SIZES[dims])


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", MIXING)
def test_mixing(name):
    """Twice in a row: once with its filters cut, once with its input channels cut."""
    dims, make = MIXING[name]
    conv = CONV[dims]
    module = seeded(lambda: between(dims, make(), nn.Tanh(), conv(11, 7, 1), make(), channels=11))
    plan = ("filters", "filters", "whole", "inputs", "filters")
    check(module, dims, list(MIXING).index(name), plan)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "schemes"),
    [
        ("conv2d-circular", "whole"),
        ("transposed2d", "from-whole"),
        ("conv1d-same-dilated", "to-inputs"),
        ("conv2d-stride", "inputs-filters"),
        ("transposed1d", "inputs-filters"),
        ("conv3d-stride", "to-inputs"),
    ],
)
def test_mixing_between_other_schemes(name, schemes):
    dims, make = MIXING[name]
    module = seeded(lambda: between(dims, make(), nn.Tanh(), channels=11))
    check(module, dims, list(MIXING).index(name), THROUGH[schemes])


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", ["filters", "rotating"])
@pytest.mark.parametrize("name", CHANNELWISE)
def test_channelwise_layers_with_parameters_or_across_channels(name, schemes):
    dims, make = CHANNELWISE[name]
    number = list(CHANNELWISE).index(name)
    if schemes == "rotating":
        schemes = ("whole", "inputs", "from-whole")[number % 3]
    check(seeded(lambda: between(dims, make())), dims, number + len(schemes), THROUGH[schemes])


@pytest.mark.mpi
@pytest.mark.parametrize("name", POOLING)
def test_pooling(name):
    dims, make = POOLING[name]
    number = list(POOLING).index(name)
    schemes = ("filters", "to-inputs", "inputs")[number % 3]
    module = seeded(
        lambda: between(dims, *[x for pool in make() for x in (pool, CONV[dims](7, 7, 1))])
    )
    check(module, dims, number, THROUGH[schemes])


@pytest.mark.mpi
@pytest.mark.parametrize("number", range(0, len(ELEMENTWISE), 4))
def test_elementwise(number):
    """Four at a time, with convolutions between them."""
    layers = ELEMENTWISE[number : number + 4]
    module = seeded(
        lambda: between(3, *[part for layer in layers for part in (nn.Conv1d(7, 7, 1), layer)])
    )
    check(module, 3, number // 4, THROUGH[list(THROUGH)[number // 4 % len(THROUGH)]])


@pytest.mark.mpi
@pytest.mark.parametrize("cut", ["by-weights", "by-layer"])
@pytest.mark.parametrize("name", RESAMPLING)
def test_resampling_shuffling_and_work_across_channels(name, cut):
    dims, channels, make = RESAMPLING[name]
    conv, number = CONV[dims], list(RESAMPLING).index(name)
    module = seeded(lambda: nn.Sequential(conv(3, 8, 1), nn.Tanh(), make(), conv(channels, 5, 1)))
    weights = pick_weights(number)
    if cut == "by-layer":
        weights = make_plan(module, weights, list(THROUGH.values())[number % 6], turned=True)
    compare_training(module, weights, SIZES[dims], example=True)


@pytest.mark.mpi
@pytest.mark.parametrize("dims", [3, 4, 5])
@pytest.mark.parametrize("schemes", ["filters", "from-whole"])
def test_padding(dims, schemes):
    """Those of one dimension in a row, each on channels that are cut in its own way."""
    layers = [pad for pad in PADDING if len(pad.padding) == 2 * (dims - 2)]
    conv = CONV[dims]
    module = seeded(
        lambda: between(dims, *[part for pad in layers for part in (pad, conv(7, 7, 2))])
    )
    plan = make_plan(module, pick_weights(dims), THROUGH[schemes], turned=True)
    compare_training(module, plan, SIZES[dims])


# --- flattening and fully connected layers ------------------------------------------------------

FEATURES = {
    "linear": lambda: nn.Sequential(
        nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 11, bias=False), nn.PReLU(11), nn.Linear(11, 5)
    ),
    "norm-of-features": lambda: nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Softplus(), nn.Linear(7, 5)
    ),
}

FLATTENED = {
    "all": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(14, 11), nn.Linear(11, 5)
    ),
    "space-only": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.Flatten(2), nn.Conv1d(7, 5, 2), nn.Flatten(), nn.Linear(55, 3)
    ),
    "channels-and-height": lambda: nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.Flatten(1, 2), nn.BatchNorm1d(28), nn.Linear(3, 4)
    ),
    "with-the-batch": lambda: nn.Sequential(
        nn.Conv2d(3, 7, (6, 5)), nn.Flatten(0, 1), nn.Flatten(), nn.Linear(1, 4)
    ),
}


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", ["filters", "inputs", "from-whole"])
@pytest.mark.parametrize("name", FEATURES)
def test_features(name, schemes):
    number = list(FEATURES).index(name) + len(schemes)
    weights = pick_weights(number)
    module = seeded(FEATURES[name])
    compare_training(module, make_plan(module, weights, THROUGH[schemes]), (4, 6))


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", ["filters", "to-inputs", "whole"])
def test_features_that_are_the_last_of_three_axes(schemes):
    """A linear layer cuts the last axis, a norm or a pooling behind it the second one."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 7), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(7, 5), nn.AvgPool1d(2)
        )
    )
    plan = make_plan(module, pick_weights(len(schemes)), THROUGH[schemes])
    compare_training(module, plan, (3, 4, 6), example=True)


@pytest.mark.mpi
@pytest.mark.parametrize("schemes", ["filters", "to-inputs"])
@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("all", False),
        ("all", True),
        ("space-only", False),
        ("space-only", True),
        # Such shapes cannot be told from the layers.
        ("channels-and-height", True),
        ("with-the-batch", True),
    ],
)
def test_flatten(name, example, schemes):
    number = list(FLATTENED).index(name) + len(schemes) + example
    module = seeded(FLATTENED[name])
    plan = make_plan(module, pick_weights(number), THROUGH[schemes])
    compare_training(module, plan, (3, 3, 6, 5), example=example)


# --- slices of the batch --------------------------------------------------------------------------

ON_IMAGES = {
    **{
        name: (dims, lambda dims=dims, make=make: between(dims, make(), channels=11))
        for name, (dims, make) in MIXING.items()
    },
    **{
        name: (dims, lambda dims=dims, make=make: between(dims, make()))
        for name, (dims, make) in CHANNELWISE.items()
    },
    **{
        name: (dims, lambda dims=dims, make=make: between(dims, *make()))
        for name, (dims, make) in POOLING.items()
    },
    **{
        name: (
            dims,
            lambda dims=dims, channels=channels, make=make: nn.Sequential(
                CONV[dims](3, 8, 1), nn.Tanh(), make(), CONV[dims](channels, 5, 1)
            ),
        )
        for name, (dims, channels, make) in RESAMPLING.items()
    },
    "elementwise": (3, lambda: between(3, *ELEMENTWISE)),
    **{
        f"padding {dims}": (
            dims,
            lambda dims=dims: between(
                dims, *[pad for pad in PADDING if len(pad.padding) == 2 * (dims - 2)]
            ),
        )
        for dims in (3, 4, 5)
    },
    **{name: ((4, 6), make) for name, make in FEATURES.items()},
    **{name: ((3, 3, 6, 5), make) for name, make in FLATTENED.items()},
}


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", ON_IMAGES)
def test_on_images(name):
    """Slices of the batch, between layers on slices of channels or not."""
    dims, make = ON_IMAGES[name]
    shape, number = SIZES[dims] if isinstance(dims, int) else dims, list(ON_IMAGES).index(name)
    module = seeded(make)
    plan = plan_on_images(module, pick_weights(number), number, shape)
    compare_training(module, plan, shape, steps=1, example=True)


# --- completeness -------------------------------------------------------------------------------


def test_every_layer_that_has_a_rule_is_compared():
    """A new layer must be added to the tables (dropout has its own tests)."""
    compared = {type(layer) for layer in (*ELEMENTWISE, *PADDING)} | {nn.Linear, nn.Flatten}
    for table in (MIXING, CHANNELWISE, GROUPED, RESAMPLING, NORMS):
        for *_, make in table.values():
            compared |= {type(layer) for layer in make().modules()}
    compared |= {type(layer) for _, make in POOLING.values() for layer in make()}
    for module in (Layers(), *map(Remembering, (1, 2, 3))):
        compared |= {type(layer) for layer in module.modules()}
    known = {layer for layer in LAYERS if "Dropout" not in layer.__name__}
    assert known - compared == set()
    assert all(rule_for(make()) is not None for _, make in MIXING.values())
