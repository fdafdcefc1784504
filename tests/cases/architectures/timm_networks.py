"""Of timm: networks for images of many kinds, most with fewer blocks than usual."""

from typing import Any

from torch import nn

from cases.architectures.architecture import Architecture, Shapes, called

_FOUR: Shapes = ((4, 3, 64, 64),)
_EIGHT: Shapes = ((8, 3, 64, 64),)
"""For those whose batch norms see few values per image."""


def _net(name: str, shapes: Shapes = _FOUR, **kwargs: Any) -> Architecture:
    make = called("create_model", name, pretrained=False, num_classes=10, **kwargs)
    return Architecture(name, "timm", make, shapes)


def _sized(title: str, kind: str, **kwargs: Any) -> Architecture:
    """Return a network built by its class, *kind*, in sizes of its own."""
    module, _, name = kind.rpartition(".")
    make = called(name, num_classes=10, **kwargs)
    return Architecture(title, f"timm.models.{module}", make, _FOUR)


def _caformer(package: Any) -> nn.Module:
    return package.MetaFormer(
        num_classes=10,
        depths=(1, 1, 1, 1),
        dims=(16, 32, 64, 64),
        token_mixers=[package.SepConv] * 2 + [package.Attention] * 2,
        norm_layers=[package.LayerNorm2dNoBias] * 2 + [package.LayerNormNoBias] * 2,
    )


def _convformer(package: Any) -> nn.Module:
    return package.MetaFormer(
        num_classes=10,
        depths=(1, 1, 1, 1),
        dims=(16, 32, 64, 64),
        token_mixers=package.SepConv,
        norm_layers=package.LayerNorm2dNoBias,
    )


def _multiscale(package: Any) -> nn.Module:
    config = package.MultiScaleVitCfg(
        depths=(1, 1, 1), embed_dim=16, stride_q=((1, 1), (2, 2), (2, 2))
    )
    return package.MultiScaleVit(config, img_size=64, num_classes=10)


TIMM = (
    # Attention over channels, and over class tokens; positions that convolutions encode.
    _net("xcit_nano_12_p16_224", img_size=64, depth=3),
    _net("xcit_tiny_12_p8_224", img_size=64, embed_dim=64, depth=3),
    _net("cait_xxs24_224", img_size=64, embed_dim=64, depth=3),
    _net("twins_svt_small", img_size=64, embed_dims=[16, 32, 64, 128], depths=[1, 1, 2, 1]),
    _net("twins_pcpvt_small", img_size=64, embed_dims=[16, 32, 80, 128], depths=[1, 1, 1, 1]),
    _net("pvt_v2_b0", depths=(1, 1, 2, 1)),
    _net("coat_lite_tiny", img_size=64, embed_dims=[32, 32, 64, 64]),
    _net("coat_tiny", img_size=64, embed_dims=[32, 32, 32, 32], parallel_depth=1,
         serial_depths=[1, 1, 1, 1]),
    _net("edgenext_xx_small", depths=(1, 1, 2, 1)),
    _net("crossvit_tiny_240", ((2, 3, 240, 240),), embed_dim=[24, 48], depth=[[1, 1, 0]] * 2),
    _net("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192)),
    _net("gcvit_xxtiny", img_size=64),
    _sized("nest, narrow", "nest.Nest", img_size=64, embed_dims=(24, 48, 96), depths=(1, 1, 2),
           num_heads=(2, 3, 4)),
    _net("visformer_tiny", _EIGHT, img_size=64),
    _net("levit_128s", _EIGHT, img_size=64),
    _net("efficientformer_l1", ((2, 3, 224, 224),), depths=(1, 1, 1, 2),
         embed_dims=(16, 32, 48, 64)),
    _net("mobilevit_xxs"),
    _net("tiny_vit_5m_224", depths=(1, 1, 2, 1), embed_dims=(16, 32, 48, 64),
         num_heads=(1, 2, 3, 4), window_sizes=(4, 4, 4, 2)),
    _net("swiftformer_xs"),
    _net("fastvit_t8", _EIGHT, layers=(1, 1, 1, 1)),
    _net("repvit_m0_9", _EIGHT),
    _net("deit_tiny_patch16_224", img_size=64, depth=3),
    _net("volo_d1_224", img_size=64),
    Architecture("caformer, narrow", "timm.models.metaformer", _caformer, _FOUR),
    Architecture("convformer, narrow", "timm.models.metaformer", _convformer, _FOUR),
    Architecture("mvitv2, narrow", "timm.models.mvitv2", _multiscale, _FOUR),
    # Weights that are standardised before they are used.
    _sized("resnetv2 (BiT), shallow", "resnetv2.ResNetV2", layers=[1, 1, 1, 1],
           channels=(128, 256, 512, 512), stem_type="fixed"),
    _net("nf_resnet26", depths=(1, 1, 1, 1), channels=(64, 128, 256, 512)),
    _net("eca_nfnet_l0", depths=(1, 1, 2, 1), channels=(256, 256, 512, 512)),
    # Convolutions.
    _net("ghostnet_050", _EIGHT),
    _sized("convmixer, narrow", "convmixer.ConvMixer", dim=96, depth=4),
    _net("hrnet_w18_small", _EIGHT),
    _net("mobileone_s0", _EIGHT),
    _net("repvgg_a0", _EIGHT),
    _net("res2net50_14w_8s", _EIGHT),
    _net("resnest14d", _EIGHT),
    _net("ese_vovnet19b_dw", _EIGHT),
    _net("lcnet_050", _EIGHT),
    _net("mobilenetv4_conv_small_050", _EIGHT),
    _net("inception_next_atto", depths=(1, 1, 2, 1)),
    _net("starnet_s1", _EIGHT, depths=[1, 1, 2, 1]),
    _net("mambaout_femto", depths=(1, 1, 2, 1)),
    _net("rdnet_tiny", num_init_features=32, growth_rates=(16, 24, 32, 48),
         num_blocks_list=(1, 1, 1, 1)),
    _net("seresnext26ts", _EIGHT),
    _net("cspresnet50", _EIGHT),
    _net("darknet17", _EIGHT),
    _net("selecsls42", _EIGHT),
    _net("dla34", _EIGHT),
    _net("tf_mixnet_s", _EIGHT),
    _sized("mlp mixer, narrow", "mlp_mixer.MlpMixer", img_size=64, embed_dim=64, num_blocks=3),
    _net("convnextv2_atto", depths=(1, 1, 2, 1)),
    _net("xception41", ((4, 3, 96, 96),)),
)  # fmt: skip
