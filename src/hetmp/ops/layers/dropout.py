"""Dropout whose mask does not depend on how the channels are cut.

torch's generator is a sequence: which number an element gets depends on what was drawn before
it, so ranks that draw for their own slices cannot agree with one process that draws for all.
Here the mask is a hash of (key, layer, position of the element in the whole activation). The
key is drawn from torch's CPU generator at each forward pass, so recomputation replays it.

The hash is two rounds of the 32-bit finaliser "lowbias32" (Ellis, *Prospecting for hash
functions*, 2018), in wrapping int32 arithmetic, which is the same on every device.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.core.state import OperandState, Sliced
from hetmp.ops.call import Call, Function, OperatorRun
from hetmp.ops.own_forward import OwnForward, own_forward
from hetmp.ops.rule import Rule, sized

_PER_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


_FUNCTIONS = {
    getattr(F, f"dropout{dims}"): dims != ""
    for dims in ("", "1d", "2d", "3d")
    if hasattr(F, f"dropout{dims}")
}
"""Whether each drops whole channels."""


class Dropout(Rule[_DropoutNd]):
    """Elements (``Dropout``) or whole channels of a sample (``Dropout1d/2d/3d``) become zero."""

    layers = (nn.Dropout, *_PER_CHANNEL)
    functions = tuple(_FUNCTIONS)
    views = (*(layer.__name__ for layer in layers), *(f.__name__ for f in functions))
    random = ("dropout",)
    keeps_shape = True
    harmless = ("p",)
    by_image = True

    def unfit(self, call: Call[_DropoutNd]) -> str | None:
        if call.layer is None and not all(
            isinstance(value, int | float) for value in _settings(call)
        ):
            return "its probability is not known before it runs"
        return None

    def input_dims(self, layer: _DropoutNd) -> int | None:
        return next(
            (dims for dims, kind in enumerate(_PER_CHANNEL, start=3) if type(layer) is kind), None
        )

    def local(
        self, run: OperatorRun[Layout, _DropoutNd], group: Group, device: torch.device
    ) -> nn.Module:
        """Return dropout with a mask that does not depend on the ranks.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        local = sized(run.whole_layer, {}, {}, device)
        per_channel = isinstance(local, _PER_CHANNEL)
        KeyedDropout(local, Mask(per_channel, run.source, group.rank))
        return local

    def function(self, run: OperatorRun[Layout, _DropoutNd], group: Group) -> Function:
        p, training = _settings(run.call)
        assert isinstance(p, int | float)  # see unfit
        per_channel = _FUNCTIONS[run.call.target]
        return FunctionalDropout(p if training else 0.0, Mask(per_channel, run.source, group.rank))


def _settings(call: Call) -> tuple[object, object]:
    """Return (probability, training), from a function's arguments."""
    # torch's own default of training is True, of dropout2d and the like too.
    return call.argument(1, "p", 0.5), call.argument(2, "training", True)


class Mask:
    """The masks of one dropout of this rank's share of an activation.

    Attributes:
        key: drawn anew for every forward pass in training, the same on all ranks.
        number: which dropout of the model this is.
    """

    def __init__(self, per_channel: bool, state: OperandState, rank: int) -> None:
        self.per_channel = per_channel
        self.key, self.number = 0, 0
        self._state, self._rank = state, rank

    def dropped(self, x: Tensor, p: float) -> Tensor:
        """Return *x* with elements set to zero, the others scaled by 1 / (1 - *p*)."""
        scale = 1 / (1 - p) if p < 1 else 0.0
        return x * self._kept(x, p).to(x.dtype).mul_(scale)

    def _kept(self, x: Tensor, p: float) -> Tensor:
        """Return which elements stay, (n, c, 1, ...) to drop whole channels."""
        per_axis = [torch.arange(size, device=x.device) for size in x.shape]
        whole = list(x.shape)
        if isinstance(self._state, Sliced):
            axis = self._state.axis
            whole[axis] = self._state.layout.total
            per_axis[axis] = torch.cat(
                [
                    torch.arange(piece.start, piece.stop, device=x.device)
                    for piece in self._state.layout.slices(self._rank)
                ]
            )
        if self.per_channel:
            whole, per_axis = whole[:2], per_axis[:2]
        position = torch.zeros((), dtype=torch.int64, device=x.device)
        for axis, indices in enumerate(per_axis):
            shape = [-1 if i == axis else 1 for i in range(len(whole))]
            position = position + indices.view(shape) * math.prod(whole[axis + 1 :])
        low, high = _words(self.key, self.number)
        hashed = _mix(_mix(_wrap(position) ^ low) + high) & 0x7FFFFFFF
        mask = hashed >= min(int(p * 2**31), 2**31 - 1) if p < 1 else hashed < 0
        return mask.view([*mask.shape, *[1] * (x.dim() - mask.dim())])


class KeyedDropout(OwnForward):
    """What a dropout layer runs: it drops what its mask says."""

    def __init__(self, layer: nn.Module, mask: Mask) -> None:
        super().__init__(layer)
        self.mask = mask

    @property
    def active(self) -> bool:
        """Whether a forward pass now would need a key."""
        return bool(self.layer.training and self.layer.p > 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Return *x* with elements set to zero, the others scaled by 1 / (1 - p)."""
        return self.mask.dropped(x, self.layer.p) if self.active else x


class FunctionalDropout(nn.Module):
    """``F.dropout``: its arguments say whether it drops, not the mode of a layer."""

    def __init__(self, p: float, mask: Mask) -> None:
        super().__init__()
        self.p, self.mask = p, mask

    @property
    def active(self) -> bool:
        """Whether a forward pass now would need a key."""
        return self.p > 0

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return *x* with elements set to zero, the others scaled by 1 / (1 - p)."""
        return self.mask.dropped(x, self.p) if self.active else x


def keyed_dropouts(model: nn.Module) -> list[KeyedDropout | FunctionalDropout]:
    """Return the dropouts in *model* whose masks want a key, in order."""
    parts = (
        part if isinstance(part, FunctionalDropout) else own_forward(part)
        for part in model.modules()
    )
    return [part for part in parts if isinstance(part, KeyedDropout | FunctionalDropout)]


def _words(key: int, number: int) -> tuple[Tensor, Tensor]:
    """Return two int32 words that differ with the key and with the layer."""
    halves = torch.tensor([key & 0xFFFFFFFF, key >> 32]) + number * 0x9E3779B1
    mixed = _mix(_wrap(halves))
    return mixed[0], mixed[1]


def _wrap(x: Tensor) -> Tensor:
    """Return the low 32 bits as int32."""
    low = x & 0xFFFFFFFF
    return torch.where(low >= 2**31, low - 2**32, low).to(torch.int32)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * -0x7B935975  # 0x846CA68B as int32
    return x ^ (x >> 16 & 0xFFFF)
