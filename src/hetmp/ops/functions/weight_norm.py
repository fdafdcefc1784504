"""Weight norm: a direction and a length for each filter."""

import torch

from hetmp.core.state import L, Sliced, States, is_batch
from hetmp.ops.call import Call, Flow
from hetmp.ops.spared import Spared


class WeightNorm(Spared):
    """``torch._weight_norm(v, g, dim)``: lengths are of the slices along *dim*, (c, 1, 1, 1)."""

    functions = (torch._weight_norm,)

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        v, g = call.operands
        source, dim = states[v], call.argument(2, "dim", 0)
        # -1 is not the last axis but all of them together.
        if not isinstance(source, Sliced) or source.axis != dim or is_batch(source):
            return None  # of no images, torch's own ends the process
        return Flow({v: source, g: source}, source)
