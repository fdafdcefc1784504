"""Of monai: networks for medical images, many of them in two and in three dimensions."""

from typing import Any

from cases.architectures.architecture import (
    CUBE,
    GRAY,
    RGB,
    SMALL_CUBE,
    Architecture,
    Shapes,
    called,
)

_TINY_CUBE: Shapes = ((2, 1, 8, 8, 8),)
_PAIR: Shapes = ((2, 2, 32, 32),)


def _net(name: str, kind: str, shapes: Shapes, /, *args: Any, small: bool = False, **kwargs: Any):
    make = called(kind, *args, **kwargs)
    return Architecture(name, "monai.networks.nets", make, shapes, small=small)


MONAI = (
    _net("ResNet-18, 2-D", "resnet18", RGB, spatial_dims=2, n_input_channels=3, num_classes=10),
    _net(
        "ResNet-18, 3-D, narrow", "resnet18", CUBE,
        spatial_dims=3, n_input_channels=1, widen_factor=0.25,
    ),
    _net("DenseNet-121, 2-D", "DenseNet121", RGB, 2, 3, 10),
    _net(
        "DenseNet, 3-D", "DenseNet", CUBE, 3, 1, 2,
        init_features=16, growth_rate=8, block_config=(2, 3, 2), small=True,
    ),
    _net("SE-ResNeXt-50, 2-D", "SEResNext50", RGB, spatial_dims=2, in_channels=3, num_classes=10),
    _net(
        "EfficientNet-B0, 2-D", "EfficientNetBN", RGB, "efficientnet-b0",
        pretrained=False, num_classes=10,
    ),
    _net(
        "UNet, 2-D, residual", "UNet", GRAY, 2, 1, 3, (16, 32, 64, 128), (2, 2, 2),
        num_res_units=2, small=True,
    ),
    _net("UNet, 3-D", "UNet", SMALL_CUBE, 3, 1, 2, (8, 16, 32), (2, 2), small=True),
    _net("BasicUNet, 2-D", "BasicUNet", GRAY, 2, 1, 3),
    _net(
        "BasicUNet++, 2-D, deep supervision", "BasicUNetPlusPlus", ((2, 1, 32, 32),), 2, 1, 3,
        features=(8, 8, 16, 24, 32, 8), deep_supervision=True, small=True,
    ),
    _net(
        "SegResNet, 3-D", "SegResNet", SMALL_CUBE, 3, 8, 1, 2,
        blocks_down=(1, 1, 2), blocks_up=(1, 1), small=True,
    ),
    _net(
        "SegResNet, 2-D, transposed", "SegResNet", GRAY, 2, 16, 1, 2, upsample_mode="deconv"
    ),
    _net(
        "SegResNetDS, 2-D, deep supervision", "SegResNetDS", GRAY, 2, 16, 1, 3,
        blocks_down=(1, 2, 2), dsdepth=2, small=True,
    ),
    _net("HighResNet, 3-D", "HighResNet", _TINY_CUBE, 3, 1, 2, small=True),
    _net(
        "AttentionUnet, 2-D", "AttentionUnet", GRAY, 2, 1, 3, (16, 32, 64), (2, 2), small=True
    ),
    _net(
        "DynUNet, 2-D, deep supervision", "DynUNet", GRAY, 2, 1, 3,
        (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2),
        filters=(16, 32, 64, 64), deep_supervision=True, deep_supr_num=2, res_block=True,
        small=True,
    ),
    _net(
        "DynUNet, 3-D", "DynUNet", SMALL_CUBE, 3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2),
        filters=(8, 16, 32),
    ),
    _net(
        "AHNet, 2-D", "AHNet", ((2, 1, 128, 128),), (2, 2, 2, 2),
        spatial_dims=2, out_channels=3, upsample_mode="bilinear",
    ),
    _net("FlexibleUNet, EfficientNet-B0", "FlexibleUNet", RGB, 3, 2, "efficientnet-b0"),
    _net("QuickNAT, squeeze and excitation", "Quicknat", GRAY, 3, 1, 16, se_block="CSE"),
    _net("RegUNet, 2-D", "RegUNet", _PAIR, 2, 2, 8, 3, out_channels=2, small=True),
    _net("LocalNet, 2-D", "LocalNet", _PAIR, 2, 2, 8, (0, 1, 2), out_channels=2),
    _net(
        "AutoEncoder, 2-D", "AutoEncoder", GRAY, 2, 1, 1, (8, 16, 32), (2, 2, 2),
        num_res_units=1, small=True,
    ),
    _net(
        "MedNeXt, 3-D", "MedNeXt", _TINY_CUBE, 3, 8, 1, 2,
        blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1), small=True,
    ),
    _net("MedNeXt, 2-D, deep supervision", "MedNeXt", GRAY, 2, 8, 1, 2, deep_supervision=True),
    _net("PatchDiscriminator, 2-D", "PatchDiscriminator", GRAY, 2, 16, 1, small=True),
    _net("UNETR, 3-D", "UNETR", CUBE, 1, 2, (32, 32, 32), 8, 48, 96, 4),
    _net("SwinUNETR, 2-D", "SwinUNETR", GRAY, 1, 2, feature_size=12, spatial_dims=2),
    _net(
        "VoxelMorphUNet, 2-D", "VoxelMorphUNet", _PAIR, 2, 2, 8, (8, 16, 16, 16, 16, 16), (8,),
        small=True,
    ),
    _net(
        "Discriminator, 2-D", "Discriminator", GRAY, (1, 64, 64), (8, 16, 32), (2, 2, 2), small=True
    ),
)  # fmt: skip
