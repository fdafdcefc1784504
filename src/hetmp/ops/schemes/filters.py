"""Scheme ``filters``: full -> sliced. A rank holds its output filters, each of them whole."""

from typing import TYPE_CHECKING

from hetmp.core.state import L, OperandState, Sliced, State
from hetmp.ops.schemes.scheme import Scheme

if TYPE_CHECKING:
    from hetmp.ops.call import OperatorRun
    from hetmp.ops.layers.mixing import Mixing
    from hetmp.ops.rule import M


class FiltersScheme(Scheme):
    """Every rank computes its filters' channels from all input channels.

    Where the layer has groups, it takes its groups' channels alone.
    """

    name = "filters"

    def takes(
        self, rule: "Mixing[M]", layer: "M", source: State[L], output: Sliced[L]
    ) -> State[L] | None:
        """Return the state of the input; *rule* and *layer* tell it from the *output*.

        It is full, unless the layer has groups of channels. *source* does not matter.
        """
        return rule.input_state(layer, output.layout, output.axis)

    def gives(self, output: Sliced[L]) -> State[L]:
        return output

    def share(self, run: "OperatorRun[L]") -> "OperandState[L]":
        return run.target

    def refusal(self, place: str, rule: "Mixing[M]", layer: "M", output: Sliced[L]) -> str:
        """Return why the groups of the *layer* at *place* cannot be cut into *output*."""
        groups = rule.groups(layer)
        return (
            f"the plan cuts layer {place} into {output}, inside one of its {groups} groups: "
            f"give every rank a multiple of {rule.output_channels(layer) // groups} channels"
        )
