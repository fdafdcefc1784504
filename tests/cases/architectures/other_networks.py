"""Of packages that have one family of networks each."""

from typing import Any

from torch import nn

from cases.architectures.architecture import RGB, Architecture


def _from_name(name: str, **kwargs: Any):
    def make(package: Any) -> nn.Module:
        network = package.EfficientNet.from_name(name, drop_connect_rate=0, **kwargs)
        network.set_swish(memory_efficient=False)  # the other has a backward of its own
        return network

    return make


OTHERS = (
    Architecture(
        "EfficientNet (lukemelas), half as wide and deep",
        "efficientnet_pytorch",
        _from_name(
            "efficientnet-b0",
            num_classes=10,
            image_size=64,
            width_coefficient=0.5,
            depth_coefficient=0.5,
        ),
        RGB,
        small=True,
    ),
    Architecture(
        "EfficientNet-B3 (lukemelas)",
        "efficientnet_pytorch",
        _from_name("efficientnet-b3", num_classes=10, image_size=64),
        RGB,
    ),
)
