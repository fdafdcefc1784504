"""How an activation lies over the ranks: the three states, as data.

The gradient of a full activation is partial, of a sliced one sliced, of a partial one full:
that one rule makes every exchange's backward the adjoint of its forward.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from typing_extensions import TypeVar

from hetmp.core.cuttable import Cuttable
from hetmp.core.partition import Layout

L = TypeVar("L", bound=Cuttable, default=Layout)
"""How an axis is cut: a ``Layout``; an ``open_axis.Axis`` while channel groups are looked for."""


@dataclass(frozen=True)
class Full:
    """Every rank holds all channels."""

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class Partial:
    """Every rank holds all channels of a summand; the truth is the sum over the ranks."""

    def __str__(self) -> str:
        return "partial"


@dataclass(frozen=True)
class Sliced(Generic[L]):
    """Each rank holds its own indices of one axis, as the layout says."""

    layout: L
    axis: int = 1

    def __str__(self) -> str:
        if not isinstance(self.layout, Layout):
            return f"sliced, {self.layout.total} in all"
        counts = [str(count) for count in self.layout.counts]
        if len(counts) > 8:
            counts[4:-2] = ["..."]
        return f"sliced {'/'.join(counts)}"


State = Full | Partial | Sliced[L]

OperandState = State[L] | tuple[State[L], ...]
"""The state of a value; of a tuple of values, a tuple of states."""

States = Mapping[str, OperandState[L]]
"""The states of values, by name."""

FULL = Full()
PARTIAL = Partial()
