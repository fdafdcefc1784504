"""Scheme ``whole``: full -> full. Every rank holds the whole layer, the same."""

from typing import TYPE_CHECKING

from hetmp.core.state import FULL, L, OperandState, Sliced, State
from hetmp.ops.schemes.scheme import Scheme

if TYPE_CHECKING:
    from hetmp.ops.call import OperatorRun
    from hetmp.ops.layers.mixing import Mixing
    from hetmp.ops.rule import M


class WholeScheme(Scheme):
    """Every rank computes all output channels from all input channels."""

    name = "whole"
    cuts_outputs = False

    def takes(
        self, rule: "Mixing[M]", layer: "M", source: State[L], output: Sliced[L]
    ) -> State[L] | None:
        """Return full, for any *rule*, *layer*, *source* and *output*."""
        return FULL

    def gives(self, output: Sliced[L]) -> State[L]:
        return FULL

    def share(self, run: "OperatorRun[L]") -> "OperandState[L]":
        return run.target
