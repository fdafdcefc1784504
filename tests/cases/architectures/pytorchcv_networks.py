"""Of pytorchcv: networks for classification and segmentation, rewritten from many papers.

Most of its classifiers end in a pooling of a fixed size and so take images of one size alone. The
large ones get a pooling of whatever size there is in its place, so that smaller images will do.
"""

from typing import Any

from torch import nn

from cases.architectures.architecture import Architecture, Shapes, called

_FULL: Shapes = ((2, 3, 224, 224),)
_SMALL: Shapes = ((4, 3, 96, 96),)
_CIFAR: Shapes = ((4, 3, 32, 32),)


def _net(module: str, name: str, shapes: Shapes = _FULL, **kwargs: Any) -> Architecture:
    return Architecture(name, f"pytorchcv.models.{module}", called(name, **kwargs), shapes)


def _pooled(module: str, name: str, shapes: Shapes = _SMALL, **kwargs: Any) -> Architecture:
    """A classifier that ends in a pooling of any size."""

    def make(package: Any) -> nn.Module:
        network = getattr(package, name)(**kwargs)
        assert type(network.features.final_pool) in (nn.AvgPool2d, nn.MaxPool2d)
        network.features.final_pool = nn.AdaptiveAvgPool2d(1)
        return network

    return Architecture(name, f"pytorchcv.models.{module}", make, shapes)


def _scene(module: str, name: str, side: int = 64, **kwargs: Any) -> Architecture:
    return _net(module, name, ((4, 3, side, side),), in_size=(side, side), **kwargs)


PYTORCHCV = (
    # Classification of large images.
    _net("squeezenet", "squeezenet_v1_1"),
    _net("preresnet", "preresnet18_wd4"),
    _net("seresnet", "seresnet10"),
    _pooled("cbamresnet", "cbam_resnet18"),
    _pooled("bamresnet", "bam_resnet18", ((8, 3, 64, 64),)),
    _net("diaresnet", "diaresnet10"),
    _net("resneta", "resneta10"),
    _net("resnesta", "resnestabc14", ((8, 3, 64, 64),)),
    _net("regnet", "regnety002"),
    _net("scnet", "scnet50", ((4, 3, 128, 128),)),
    _pooled("airnet", "airnet50_1x64d_r16"),
    _pooled("resattnet", "resattnet56"),
    _net("octresnet", "octresnet10_ad2"),
    _pooled("ibnresnet", "ibn_resnet50"),
    _pooled("bagnet", "bagnet9", ((4, 3, 32, 32),)),
    _pooled("drn", "drnc26", ((4, 3, 32, 32),)),
    _pooled("diracnetv2", "diracnet18v2"),
    _net("darknet", "darknet_tiny"),
    _pooled("bninception", "bninception"),
    _net("shufflenet", "shufflenet_g3_wd4"),
    _net("shufflenetv2", "shufflenetv2_wd2"),
    _net("menet", "menet108_8x1_g3"),
    _net("igcv3", "igcv3_wd4"),
    _net("mobilenet", "mobilenet_wd4"),
    _net("mobilenetv3", "mobilenetv3_small_wd2"),
    _net("mnasnet", "mnasnet_small"),
    _pooled("proxylessnas", "proxylessnas_cpu"),
    _pooled("fbnet", "fbnet_cb"),
    _pooled("ghostnet", "ghostnet"),
    _pooled("mixnet", "mixnet_s"),
    _net("dpn", "dpn68"),
    _pooled("hrnet", "hrnet_w18_small_v1"),
    _pooled("vovnet", "vovnet27s"),
    _net("dla", "dla46c"),
    _net("hardnet", "hardnet39ds"),
    _pooled("selecsls", "selecsls42b"),
    _net("tresnet", "tresnet_m", ((8, 3, 64, 64),)),
    _net("dicenet", "dicenet_w1"),
    _net("espnetv2", "espnetv2_wd2"),
    _pooled("condensenet", "condensenet74_c4_g4"),
    _net("channelnet", "channelnet"),
    _net("msdnet", "msdnet22"),
    _net("peleenet", "peleenet"),
    _pooled("fishnet", "fishnet99"),
    _pooled("xdensenet", "xdensenet121_2"),
    _pooled("sparsenet", "sparsenet121"),
    _pooled("nasnet", "nasnet_4a1056"),
    _pooled("darts", "darts"),
    _net("xception", "xception", ((2, 3, 299, 299),)),
    _pooled("inceptionv3", "inceptionv3", ((4, 3, 107, 107),)),
    # Of CIFAR's images.
    _net("resnext_cifar", "resnext20_16x4d_cifar10", _CIFAR),
    _net("rir_cifar", "rir_cifar10", ((2, 3, 32, 32),)),
    _net("ror_cifar", "ror3_56_cifar10", _CIFAR),
    _net("nin_cifar", "nin_cifar10", _CIFAR),
    _net("densenet_cifar", "densenet40_k12_bc_cifar10", _CIFAR),
    _net("pyramidnet_cifar", "pyramidnet110_a48_cifar10", _CIFAR),
    _net("sepreresnet_cifar", "sepreresnet20_cifar10", _CIFAR),
    # Segmentation.
    _scene("deeplabv3", "deeplabv3_resnetd50b_voc", 32, num_classes=5, pretrained_backbone=False),
    _scene("pspnet", "pspnet_resnetd50b_voc", 48, num_classes=5, pretrained_backbone=False),
    _scene("danet", "danet_resnetd50b_cityscapes", 32, pretrained_backbone=False),
    _scene("fastscnn", "fastscnn_cityscapes", 192),
    _scene("contextnet", "ctxnet_cityscapes", 192),
    _scene("unet", "unet_cityscapes", 32),
    _scene("linknet", "linknet_cityscapes", 96),
    _scene("segnet", "segnet_cityscapes", 32),
    _scene("enet", "enet_cityscapes"),
    _scene("erfnet", "erfnet_cityscapes"),
    _scene("esnet", "esnet_cityscapes"),
    _scene("edanet", "edanet_cityscapes"),
    _scene("lednet", "lednet_cityscapes"),
    _scene("cgnet", "cgnet_cityscapes"),
    _scene("dabnet", "dabnet_cityscapes"),
    _scene("fpenet", "fpenet_cityscapes"),
    _scene("espcnet", "espcnet_cityscapes"),
    _scene("sinet", "sinet_cityscapes", 128),
    _scene("sqnet", "sqnet_cityscapes"),
)
