"""Normalizations that would see one value per channel: refused on every rank alike.

torch refuses them, too, where it computes: on the ranks that hold channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from hetmp.cluster import AgreedError
from hetmp.ops.call import Call


@dataclass(frozen=True)
class Statistics:
    """How a batch or instance norm takes statistics from its input.

    Attributes:
        per_image: whether of each image, and not of the batch.
        always: whether in evaluation, too.
        dims: how many dimensions a batch has, None where it does not matter.
    """

    per_image: bool
    always: bool
    dims: int | None = None

    @classmethod
    def of(cls, call: Call) -> "Statistics | None":
        """Return how *call* takes statistics; None where it takes none, or is no such norm."""
        layer = call.layer
        if layer is None:
            if call.target is F.batch_norm and call.argument(5, "training", False) is True:
                return cls(False, always=True)
            if call.target is F.instance_norm and call.argument(5, "use_input_stats", True) is True:
                return cls(True, always=True)
            return None
        # A subclass that computes in another way may have another rule.
        if type(layer).forward is _BatchNorm.forward and isinstance(layer, _BatchNorm):
            return cls(False, layer.running_mean is None and layer.running_var is None)
        if type(layer).forward is _InstanceNorm.forward and isinstance(layer, _InstanceNorm):
            return cls(True, not layer.track_running_stats, layer._get_no_batch_dim() + 1)
        return None

    def values(self, shape: Sequence[int]) -> int:
        """Return how many values of each channel an input of *shape*, (n, c, ...), has."""
        return (1 if self.per_image else shape[0]) * math.prod(shape[2:])

    def check(self, place: str, callee: object, shape: Sequence[int]) -> None:
        """Refuse an input with one value per channel. Not collective: each rank sees it alike.

        Args:
            place: of the norm, for the reader.
            callee: the layer or function that is about to run on this rank.
            shape: of this rank's input, (n, channels of this rank, ...).

        Raises:
            AgreedError: there is one value, and torch would take statistics from it.
        """
        training = isinstance(callee, nn.Module) and callee.training
        batched = self.dims in (None, len(shape))
        if not (self.always or training) or not batched or self.values(shape) != 1:
            return
        if self.per_image:
            raise AgreedError(
                f"{place}: an image of 1 pixel has 1 value per channel, and instance norm needs "
                "more than that in training: give larger images"
            )
        raise AgreedError(
            f"{place}: a batch of 1 image of 1 pixel has 1 value per channel, and batch norm needs "
            "more than that in training: give larger batches, and leave out a last one that is "
            "not full: --drop-last in hetmp train, DataLoader(drop_last=True) in your own loop"
        )
