"""Scheme ``batch``: sliced along the batch -> the same. Every rank holds the whole layer."""

from typing import TYPE_CHECKING

from hetmp.core.state import L, OperandState, Sliced, State
from hetmp.ops.schemes.scheme import Scheme

if TYPE_CHECKING:
    from hetmp.ops.call import OperatorRun
    from hetmp.ops.layers.mixing import Mixing
    from hetmp.ops.rule import M


class BatchScheme(Scheme):
    """Every rank computes all channels of its images. Gradients of the layer are summed."""

    name = "batch"
    cuts_outputs = False
    cuts_batch = True

    def takes(
        self, rule: "Mixing[M]", layer: "M", source: State[L], output: Sliced[L]
    ) -> State[L] | None:
        """Return the state of the *output*, for any *rule*, *layer* and *source*."""
        return output

    def gives(self, output: Sliced[L]) -> State[L]:
        return output

    def share(self, run: "OperatorRun[L]") -> "OperandState[L]":
        return run.target
