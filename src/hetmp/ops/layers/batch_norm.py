"""Batch and instance normalization: statistics are per channel.

So slices of channels need no exchange; for slices of the batch see ``shared_batch_norm.py``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.core.state import L, Sliced, State, States, is_batch
from hetmp.ops.call import Call, Flow, Function, OperatorRun
from hetmp.ops.idle import Idle
from hetmp.ops.layers.shared_batch_norm import SharedBatchNorm
from hetmp.ops.own_forward import own_forward
from hetmp.ops.rule import Cuts, Rule, cut_along
from hetmp.ops.spared import SparedImagesLayer

_DIMS = {
    nn.BatchNorm1d: None,
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.InstanceNorm1d: 3,
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}

_CUT = ("weight", "bias", "running_mean", "running_var")


class ChannelNorm(Rule[_NormBase]):
    """Batch and instance norm: parameters and statistics are cut like the channels."""

    layers = tuple(_DIMS)
    keeps_shape = True
    harmless = ("eps", "momentum")
    by_image = True
    shares_images = True
    runs_empty = False

    def flow(self, call: Call[_NormBase], states: States[L]) -> Flow[L] | None:
        layer = call.whole_layer
        # Running statistics of an instance norm are means over the batch.
        tracks = isinstance(layer, _InstanceNorm) and layer.track_running_stats
        if tracks and any(map(is_batch, states.values())):
            return None
        return super().flow(call, states)

    def input_dims(self, layer: _NormBase) -> int | None:
        return next(dims for kind, dims in _DIMS.items() if type(layer) is kind)

    def input_channels(self, layer: _NormBase) -> int | None:
        # An instance norm without tensors does not look at the number it was made for.
        bare = isinstance(layer, _InstanceNorm) and not any(
            getattr(layer, name) is not None for name in _CUT
        )
        return None if bare else int(layer.num_features)

    def gives(self, call: Call[_NormBase], source: Sliced[L]) -> State[L] | None:
        return source if source.axis == 1 else None

    def cuts(self, run: OperatorRun[L, _NormBase]) -> Cuts[L]:
        return cut_along(run.layer, dict.fromkeys(_CUT, 0), run.source)

    def resize(self, layer: _NormBase, run: OperatorRun[Layout, _NormBase], count: int) -> None:
        """Set the number of features of *layer* to *count*; *run* is as in ``Rule.resize``."""
        layer.num_features = count

    def local(
        self, run: OperatorRun[Layout, _NormBase], group: Group, device: torch.device
    ) -> nn.Module:
        """Return the norm of this rank's channels, or of its images: then the ranks exchange.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        local = super().local(run, group, device)
        if isinstance(local, _InstanceNorm) and own_forward(local) is None:
            _OrderedInstanceNorm(local)
        elif is_batch(run.source) and group.size > 1:
            SharedBatchNorm(local, group, run.wire)
        return local

    def idle(self, layer: _NormBase, run: OperatorRun[Layout, _NormBase]) -> None:
        """Let *layer* run without channels, as in ``Rule.idle``; a batch norm counts its batches.

        *run* is its call.
        """
        if not isinstance(run.layer, _BatchNorm):
            super().idle(layer, run)
            return
        stand_in = self.stand_in(run)
        if stand_in.momentum is None:  # it would look at how many batches there were: on meta
            stand_in.momentum = 0.1
        IdleBatchNorm(layer, stand_in, **self.idle_axes(run))


class _OrderedInstanceNorm(SparedImagesLayer):
    """What an instance norm runs: torch's own, which does not run on no images.

    Backward, of one image, torch's own takes a gradient that lies in memory as channels_last for
    another one.
    """

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the normalized *x*, (images of this rank, channels of this rank, ...)."""
        return _with_gradient_in_order(super().__call__(x, *args, **kwargs))


def _with_gradient_in_order(y: Tensor) -> Tensor:
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)
    return y


class BareNorm(Rule):
    """Instance and layer norm functions without parameters, over axes that are not cut."""

    functions = (F.instance_norm, F.layer_norm)
    by_image = True
    runs_empty = False

    def unfit(self, call: Call) -> str | None:
        return "its parameters belong to no layer" if len(call.operands) > 1 else None

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        if call.target is F.instance_norm:
            return source if source.axis == 1 else None
        shape = call.argument(1, "normalized_shape")
        if not isinstance(shape, tuple | list):
            return None
        return source if source.axis < call.operand.dims - len(shape) else None

    def function(self, run: OperatorRun[Layout], group: Group) -> Function:
        compute = super().function(run, group)
        if run.call.target is not F.instance_norm:
            return compute
        return lambda *args, **kwargs: _with_gradient_in_order(compute(*args, **kwargs))


class IdleBatchNorm(Idle):
    """What a batch norm without channels here runs: it counts its batches all the same."""

    def __call__(self, x: Tensor) -> Tensor:
        counter = self.layer.num_batches_tracked
        if self.layer.training and isinstance(counter, Tensor):
            counter.add_(1)
        return super().__call__(x)
