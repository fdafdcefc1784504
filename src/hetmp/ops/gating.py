"""Gated linear units: the second half of an axis gates the first."""

from torch import nn
from torch.nn import functional as F

from hetmp.ops.call import Call
from hetmp.ops.rule import Rule
from hetmp.state import Sliced, State


class Gating(Rule):
    """Where the halved axis is cut, both halves are cut alike, so that each rank has its gates."""

    layers = (nn.GLU,)
    functions = (F.glu,)

    def gives(self, call: Call, source: Sliced) -> State | None:
        dim = call.layer.dim if call.layer is not None else call.argument(1, "dim", -1)
        if not isinstance(dim, int):
            return None
        if dim % call.taken.dims != source.axis:
            return source
        half = source.layout.folded(2)
        return None if half is None else Sliced(half, source.axis)
