"""The interface of a scheme: what a layer takes, gives and holds on a rank under it."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from hetmp.core.state import L, OperandState, Sliced, State

if TYPE_CHECKING:
    from hetmp.ops.call import OperatorRun
    from hetmp.ops.layers.mixing import Mixing
    from hetmp.ops.rule import M

SchemeName = Literal["filters", "inputs", "batch", "whole"]
"""The schemes' names in plans and commands."""


class Scheme(ABC):
    """How a layer that mixes channels is divided (see ``docs/idea.md``)."""

    name: ClassVar[SchemeName]
    """Its name in plans and commands."""

    cuts_inputs: ClassVar[bool] = False
    """Whether a rank holds input channels of every filter, and not whole filters."""

    cuts_outputs: ClassVar[bool] = True
    """Whether the layer's output channels are divided among the ranks, as its plan says."""

    cuts_batch: ClassVar[bool] = False
    """Whether a rank computes all channels of some images."""

    @abstractmethod
    def takes(
        self, rule: "Mixing[M]", layer: "M", source: State[L], output: Sliced[L]
    ) -> State[L] | None:
        """Return the state in which the layer takes its input; None if *output* is impossible.

        Args:
            rule: of the *layer*.
            source: the state that the input has.
            output: how the plan cuts the output channels.
        """

    @abstractmethod
    def gives(self, output: Sliced[L]) -> State[L]:
        """Return the state of the layer's own result, by the plan for its *output*."""

    @abstractmethod
    def share(self, run: "OperatorRun[L]") -> "OperandState[L]":
        """Return the state whose layout gives each rank's share of the layer."""

    def refusal(self, place: str, rule: "Mixing[M]", layer: "M", output: Sliced[L]) -> str:
        """Return why the layer at *place* cannot follow the scheme with this *output*."""
        return f"layer {place} cannot follow scheme {self.name!r}"
