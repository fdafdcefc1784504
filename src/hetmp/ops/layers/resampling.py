"""Upsampling, padding, pixel shuffling and patches: channel by channel, or channels into pixels."""

from typing import SupportsInt

from torch import nn
from torch.nn import functional as F

from hetmp.core.state import L, Sliced, State
from hetmp.ops.call import Call, OperatorRun
from hetmp.ops.idle import IdleAxes
from hetmp.ops.rule import Rule
from hetmp.ops.spared import Spared, SparedImages

_PADS = ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad")


class Resampling(Rule):
    """Changes of the number of pixels, channel by channel."""

    layers = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
    by_image = True
    functions = (F.interpolate, F.upsample)
    runs_empty = False

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        return source if source.axis == 1 else None


class Padding(Rule):
    """Padding: pixels around an image."""

    layers = tuple(
        getattr(nn, f"{kind}{dims}d")
        for kind in _PADS
        for dims in (1, 2, 3)
        if hasattr(nn, f"{kind}{dims}d")
    )
    functions = (F.pad,)
    runs_empty = False

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        padding = call.layer.padding if call.layer is not None else call.argument(1, "pad")
        if not isinstance(padding, tuple | list):
            return None
        return source if source.axis < call.operand.dims - len(padding) // 2 else None


class PixelShuffle(SparedImages):
    """(n, c * r * r, h, w) -> (n, c, h * r, w * r): r * r channels become one."""

    layers = (nn.PixelShuffle,)
    by_image = True
    functions = (F.pixel_shuffle,)
    runs_empty = False

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        if source.axis != call.operand.dims - 3:
            return None
        layout = source.layout.grouped(_factor(call, "upscale_factor") ** 2)
        return None if layout is None else Sliced(layout, source.axis)

    def idle_axes(self, run: OperatorRun) -> IdleAxes:
        width = _factor(run.call, "upscale_factor") ** 2
        return {**super().idle_axes(run), "width": width}


class PixelUnshuffle(SparedImages):
    """(n, c, h * r, w * r) -> (n, c * r * r, h, w): each channel becomes a block of r * r."""

    layers = (nn.PixelUnshuffle,)
    by_image = True
    functions = (F.pixel_unshuffle,)
    runs_empty = False

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        if source.axis != call.operand.dims - 3:
            return None
        return Sliced(source.layout.scaled(_factor(call, "downscale_factor") ** 2), source.axis)


def _factor(call: Call, name: str) -> int:
    factor = call.setting(1, name)
    assert isinstance(factor, SupportsInt)
    return int(factor)


class ChannelShuffle(Rule):
    """(n, g * c, ...) -> (n, c * g, ...): channels of g groups take turns."""

    layers = (nn.ChannelShuffle,)
    by_image = True
    functions = (F.channel_shuffle,)
    runs_empty = False

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        groups = _factor(call, "groups")
        part = source.layout.folded(groups) if source.axis == 1 else None
        return None if part is None else Sliced(part.scaled(groups), 1)

    def idle_axes(self, run: OperatorRun) -> IdleAxes:
        return {**super().idle_axes(run), "width": _factor(run.call, "groups")}


class Patches(Spared):
    """(n, c, h, w) -> (n, c * window, patches), a block per channel; or the inverse."""

    layers = (nn.Unfold, nn.Fold)
    by_image = True
    functions = (F.unfold, F.fold)

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        before, after = call.operand.sizes[0], call.result.sizes[0]
        if source.axis != 1 or len(before) + len(after) != 7:
            return None  # a single image has no batch axis
        if len(before) == 4:
            return Sliced(source.layout.scaled(after[1] // before[1]), 1)
        layout = source.layout.grouped(before[1] // after[1])
        return None if layout is None else Sliced(layout, 1)

    def spare_width(self, call: Call) -> int:
        """Return the number of indices of the channel axis that one channel takes up."""
        return max(1, call.operand.sizes[0][1] // call.result.sizes[0][1])
