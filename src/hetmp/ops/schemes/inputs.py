"""Scheme ``inputs``: sliced -> partial. A rank holds some input channels of every filter."""

from typing import TYPE_CHECKING

from hetmp.core.state import PARTIAL, L, OperandState, Sliced, State
from hetmp.ops.schemes.scheme import Scheme

if TYPE_CHECKING:
    from hetmp.ops.call import OperatorRun
    from hetmp.ops.layers.mixing import Mixing
    from hetmp.ops.rule import M


class InputsScheme(Scheme):
    """Every rank computes a summand of all output channels from its input channels.

    Slices are taken as they come; a full input is cut with the ranks' shares of the output. The
    bias is added once, after the reduction.
    """

    name = "inputs"
    cuts_inputs = True

    def takes(
        self, rule: "Mixing[M]", layer: "M", source: State[L], output: Sliced[L]
    ) -> State[L] | None:
        """Return the state of the input: *source* if it is sliced on the axis of *output*.

        Else slices of the channels that *rule* says *layer* takes, shared as *output* is; None if
        it names none.
        """
        if isinstance(source, Sliced) and source.axis == output.axis:
            return source
        channels = rule.input_channels(layer)
        if channels is None or not output.layout.total:
            return None
        return Sliced(output.layout.like(channels), output.axis)

    def gives(self, output: Sliced[L]) -> State[L]:
        return PARTIAL

    def share(self, run: "OperatorRun[L]") -> "OperandState[L]":
        return run.source
