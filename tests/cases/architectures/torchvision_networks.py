"""Of torchvision: networks for images, for their segmentation and for videos.

Transformers that have a class with sizes of its own are built narrower and shallower than usual.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from cases.architectures.architecture import RGB, Architecture, Shapes, called

_FOUR: Shapes = ((4, 3, 64, 64),)
_EIGHT: Shapes = ((8, 3, 64, 64),)
"""For those whose batch norms see few values per image."""
_VIDEO: Shapes = ((2, 3, 4, 32, 32),)


def _net(name: str, shapes: Shapes = _FOUR, title: str = "", **kwargs: Any) -> Architecture:
    make = called(name, weights=None, **{"num_classes": 10, **kwargs})
    return Architecture(title or name, "torchvision.models", make, shapes)


def _scene(name: str, side: int = 64) -> Architecture:
    make = called(name, weights=None, weights_backbone=None, num_classes=5)
    return Architecture(name, "torchvision.models.segmentation", make, ((4, 3, side, side),))


def _video(name: str) -> Architecture:
    make = called(name, weights=None, num_classes=10)
    return Architecture(name, "torchvision.models.video", make, _VIDEO)


def _sized(title: str, kind: str, shapes: Shapes, **kwargs: Any) -> Architecture:
    """Return a network built by its class, *kind*, in sizes of its own."""
    module, _, name = kind.rpartition(".")
    make = called(name, num_classes=10, **kwargs)
    return Architecture(title, f"torchvision.models.{module}", make, shapes)


def _separable(package: Any) -> nn.Module:
    network = package.s3d(weights=None, num_classes=10)
    network.avgpool = nn.AdaptiveAvgPool3d(1)
    return network


def _convnext(package: Any) -> nn.Module:
    widths = (24, 48, 96, 192, None)
    blocks = [
        package.CNBlockConfig(width, following, layers)
        for width, following, layers in zip(widths, widths[1:], (1, 1, 2, 1), strict=False)
    ]
    return package.ConvNeXt(blocks, num_classes=10)


def _vgg(package: Any) -> nn.Module:
    network = package.vgg11_bn(weights=None)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, 10)
    return network


def _vision_transformer(package: Any) -> nn.Module:
    stem = [package.ConvStemConfig(width, 3, 2) for width in (12, 24, 48)]
    return package.VisionTransformer(64, 8, 2, 4, 48, 96, num_classes=10, conv_stem_configs=stem)


def _multiscale(**kwargs: Any) -> Callable[[Any], nn.Module]:
    def make(package: Any) -> nn.Module:
        widths, heads = (16, 16, 32, 32, 64), (1, 2, 2, 4)
        queries, keys = (1, 2, 1, 2), (4, 2, 2, 1)
        blocks = [
            package.MSBlockConfig(
                heads[n], widths[n], widths[n + 1],
                [3, 3, 3], [3, 3, 3], [1, queries[n], queries[n]], [1, keys[n], keys[n]],
            )
            for n in range(4)
        ]  # fmt: skip
        return package.MViT(
            spatial_size=(32, 32), temporal_size=4, block_setting=blocks, num_classes=10, **kwargs
        )

    return make


TORCHVISION = (
    # Classification of images.
    _net("resnet18"),
    _net("resnext50_32x4d"),
    _net("densenet121"),
    _net("mobilenet_v2", _EIGHT, "mobilenet_v2, narrow", width_mult=0.35),
    _net("mobilenet_v3_small", _EIGHT),
    _net("efficientnet_b0", _EIGHT),
    _net("shufflenet_v2_x0_5", _EIGHT),
    _net("squeezenet1_1"),
    _net("googlenet", _FOUR, aux_logits=True, init_weights=False),
    _net("inception_v3", ((4, 3, 299, 299),), aux_logits=True, init_weights=False),
    _net("mnasnet0_5", _EIGHT),
    _net("regnet_y_400mf", _EIGHT),
    _net("regnet_x_400mf", _EIGHT),
    Architecture("convnext, narrow", "torchvision.models.convnext", _convnext, _FOUR),
    _sized(
        "swin, narrow", "swin_transformer.SwinTransformer", RGB,
        patch_size=[4, 4], embed_dim=24, depths=[2, 2, 2], num_heads=[2, 3, 4], window_size=[4, 4],
    ),
    Architecture("vgg11 with batch norm, small head", "torchvision.models.vgg", _vgg, RGB),
    Architecture(
        "vision transformer with a convolutional stem", "torchvision.models.vision_transformer",
        _vision_transformer, RGB,
    ),
    _sized(
        "maxvit, narrow", "maxvit.MaxVit", _FOUR,
        input_size=(64, 64), stem_channels=16, partition_size=4, block_channels=[16, 32],
        block_layers=[1, 2], head_dim=8, stochastic_depth_prob=0.0,
    ),
    # Segmentation.
    _scene("fcn_resnet50", 32),
    _scene("deeplabv3_mobilenet_v3_large"),
    _scene("lraspp_mobilenet_v3_large"),
    # Videos.
    _video("r3d_18"),
    _video("mc3_18"),
    _video("r2plus1d_18"),
    Architecture(
        "s3d, pooling of any size", "torchvision.models.video", _separable, ((2, 3, 16, 64, 64),)
    ),
    Architecture(
        "mvit of the first version, narrow", "torchvision.models.video.mvit",
        _multiscale(residual_pool=False, residual_with_cls_embed=True, rel_pos_embed=False,
                    proj_after_attn=False), _VIDEO,
    ),
    Architecture(
        "mvit of the second version, narrow", "torchvision.models.video.mvit",
        _multiscale(residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True,
                    proj_after_attn=True), _VIDEO,
    ),
    _sized(
        "swin3d, narrow", "video.swin_transformer.SwinTransformer3d", ((2, 3, 8, 64, 64),),
        patch_size=[2, 4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 3],
        window_size=[2, 4, 4], stochastic_depth_prob=0.0,
    ),
)  # fmt: skip
