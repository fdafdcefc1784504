"""Of transformers: its convolutional networks, and some that mix convolution and attention."""

from collections.abc import Callable
from typing import Any

from torch import nn

from cases.architectures.architecture import RGB, Architecture, Shapes

_MANY: Shapes = ((12, 3, 64, 64),)
"""For those whose batch norms see few values per image."""


def _configured(name: str, config: dict[str, Any]) -> Callable[[Any], nn.Module]:
    def make(transformers: Any) -> nn.Module:
        kind = getattr(transformers, name)
        return kind(kind.config_class(**config))

    return make


def _net(name: str, kind: str, shapes: Shapes = RGB, small: bool = False, **config: Any):
    return Architecture(
        name,
        "transformers",
        _configured(kind, config),
        shapes,
        ("pixel_values",),
        {"return_dict": False},
        small,
    )


TRANSFORMERS = (
    _net(
        "ConvNeXt", "ConvNextForImageClassification",
        small=True, depths=[1, 1, 2, 1], hidden_sizes=[20, 40, 80, 160],
    ),
    _net(
        "ConvNeXt V2", "ConvNextV2ForImageClassification",
        depths=[1, 1, 2, 1], hidden_sizes=[20, 40, 80, 160],
    ),
    _net(
        "RegNet", "RegNetForImageClassification",
        small=True, hidden_sizes=[32, 64, 96, 128], depths=[1, 2, 2, 1], groups_width=16,
    ),
    _net(
        "ResNet, bottlenecks", "ResNetForImageClassification",
        small=True, embedding_size=16, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 2, 1],
    ),
    _net(
        "BiT", "BitForImageClassification",
        embedding_size=32, hidden_sizes=[128, 256, 256, 512], depths=[1, 1, 1, 1],
    ),
    _net(
        "EfficientNet", "EfficientNetForImageClassification", small=True,
        width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640,
        dropout_rate=0.0, drop_connect_rate=0.0,
    ),
    _net("MobileNet V1", "MobileNetV1ForImageClassification", small=True, depth_multiplier=0.25),
    _net("MobileNet V2", "MobileNetV2ForImageClassification", _MANY, depth_multiplier=0.35),
    _net(
        "FocalNet", "FocalNetForImageClassification",
        small=True, image_size=64, embed_dim=16, depths=[1, 1, 1, 1],
    ),
    _net(
        "PoolFormer", "PoolFormerForImageClassification",
        small=True, hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 2, 1],
    ),
    _net(
        "CvT", "CvtForImageClassification",
        embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3],
        drop_path_rate=[0.0, 0.0, 0.0],
    ),
    _net(
        "LeViT", "LevitForImageClassification", _MANY,
        image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[2, 3, 4], depths=[1, 1, 1],
        drop_path_rate=0,
    ),
    _net(
        "MobileViT", "MobileViTForImageClassification", image_size=64,
        hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 96],
    ),
    _net("MobileViT V2", "MobileViTV2ForImageClassification", image_size=64, width_multiplier=0.5),
    _net("SwiftFormer", "SwiftFormerForImageClassification", image_size=64, drop_path_rate=0.0),
    _net(
        "PVT V2", "PvtV2ForImageClassification", image_size=64,
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4],
    ),
    _net(
        "HGNet V2", "HGNetV2ForImageClassification", small=True, hidden_sizes=[32, 64, 96, 128],
        embedding_size=16, stem_channels=[3, 8, 16], stage_in_channels=[16, 32, 64, 96],
        stage_mid_channels=[8, 16, 24, 32], stage_out_channels=[32, 64, 96, 128],
        stage_numb_of_layers=[2, 2, 2, 2],
    ),
    _net("TextNet", "TextNetForImageClassification"),
    _net(
        "DINOv3 ConvNeXt", "DINOv3ConvNextModel",
        hidden_sizes=[24, 48, 96, 192], depths=[1, 1, 2, 1],
    ),
    _net(
        "SegFormer", "SegformerForSemanticSegmentation",
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=32,
    ),
    _net("UPerNet on ResNet", "UperNetForSemanticSegmentation", _MANY, hidden_size=32),
)  # fmt: skip
