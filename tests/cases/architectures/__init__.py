"""Architectures that others wrote, from packages: the models that hetmp is held against.

Each is built with random weights, in the size that its package gives it unless that is too large
for a test; the images are small. Nothing is downloaded. A file per package.
"""

from cases.architectures.architecture import Architecture, tensors
from cases.architectures.monai_networks import MONAI
from cases.architectures.other_networks import OTHERS
from cases.architectures.pytorchcv_networks import PYTORCHCV
from cases.architectures.segmentation_networks import NNUNET, SEGMENTATION_MODELS
from cases.architectures.timm_networks import TIMM
from cases.architectures.torchvision_networks import TORCHVISION
from cases.architectures.transformers_networks import TRANSFORMERS

ARCHITECTURES = (
    *MONAI,
    *OTHERS,
    *TRANSFORMERS,
    *PYTORCHCV,
    *TORCHVISION,
    *TIMM,
    *SEGMENTATION_MODELS,
    *NNUNET,
)

__all__ = ["ARCHITECTURES", "Architecture", "tensors"]
