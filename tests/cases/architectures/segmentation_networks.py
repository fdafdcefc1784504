"""Of segmentation_models_pytorch and of nnU-Net's dynamic_network_architectures."""

from typing import Any

from torch import nn

from cases.architectures.architecture import (
    GRAY,
    SMALL_CUBE,
    Architecture,
    Shapes,
    called,
)

_FOUR: Shapes = ((4, 3, 64, 64),)


def _smp(kind: str, encoder: str, shapes: Shapes = _FOUR, **kwargs: Any) -> Architecture:
    make = called(kind, encoder, encoder_weights=None, classes=4, **kwargs)
    return Architecture(f"{kind}, {encoder}", "segmentation_models_pytorch", make, shapes)


SEGMENTATION_MODELS = (
    _smp("Unet", "resnet18", decoder_channels=(64, 32, 16, 16, 8)),
    _smp("Unet", "mit_b0", decoder_channels=(64, 32, 16, 16, 8)),
    _smp("Unet", "vgg11_bn", decoder_channels=(64, 32, 16, 16, 8)),
    _smp(
        "Unet", "densenet121", decoder_channels=(64, 32, 32, 16, 16), decoder_attention_type="scse"
    ),
    _smp("UnetPlusPlus", "mobilenet_v2", decoder_channels=(64, 32, 16, 16, 8)),
    _smp("MAnet", "resnet18", decoder_channels=(64, 32, 16, 16, 8)),
    _smp("Linknet", "timm-mobilenetv3_small_100"),
    _smp("FPN", "efficientnet-b0"),
    _smp("PSPNet", "resnet18"),
    _smp("PAN", "resnet18", ((4, 3, 128, 128),)),
    _smp("DeepLabV3", "mobilenet_v2"),
    _smp("DeepLabV3Plus", "resnet18"),
    _smp("UPerNet", "resnet18"),
    _smp("Segformer", "mit_b0"),
)


def _nnunet(title: str, kind: str, sides: int, shapes: Shapes, **kwargs: Any) -> Architecture:
    """Return a network as nnU-Net configures it: instance norms, leaky ReLUs; narrow."""
    convolution, norm = (
        (nn.Conv2d, nn.InstanceNorm2d) if sides == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    )
    make = called(
        kind, input_channels=1, n_stages=4, features_per_stage=(8, 16, 32, 40),
        conv_op=convolution, kernel_sizes=3, strides=(1, 2, 2, 2), num_classes=3,
        conv_bias=True, norm_op=norm, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, **kwargs,
    )  # fmt: skip
    package = "dynamic_network_architectures.architectures.unet"
    return Architecture(f"{title}, {sides}-D", package, make, shapes)


def _nnunets() -> list[Architecture]:
    both: tuple[tuple[int, Shapes], ...] = ((2, GRAY), (3, SMALL_CUBE))
    networks = []
    for sides, shapes in both:
        networks += [
            _nnunet(
                "PlainConvUNet, deep supervision", "PlainConvUNet", sides, shapes,
                n_conv_per_stage=2, n_conv_per_stage_decoder=2, deep_supervision=True,
            ),
            _nnunet(
                "ResidualEncoderUNet, deep supervision", "ResidualEncoderUNet", sides, shapes,
                n_blocks_per_stage=(1, 2, 2, 2), n_conv_per_stage_decoder=1, deep_supervision=True,
            ),
            _nnunet(
                "ResidualUNet", "ResidualUNet", sides, shapes,
                n_blocks_per_stage=(1, 2, 2, 2), n_conv_per_stage_decoder=1,
            ),
        ]  # fmt: skip
    return networks


NNUNET = tuple(_nnunets())
