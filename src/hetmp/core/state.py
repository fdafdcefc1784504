"""How an activation lies over the ranks: the three states, as data.

The gradient of a full activation is partial, of a sliced one sliced, of a partial one full:
that one rule makes every exchange's backward the adjoint of its forward.
"""

from dataclasses import dataclass

from hetmp.core.partition import Layout


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
class Sliced:
    """Each rank holds its own indices of one axis, as the layout says.

    While channel groups are looked for, an ``open_axis.Axis`` stands where the layout will be.
    """

    layout: Layout
    axis: int = 1

    def __str__(self) -> str:
        counts = [str(count) for count in self.layout.counts]
        if len(counts) > 8:
            counts[4:-2] = ["..."]
        return f"sliced {'/'.join(counts)}"


State = Full | Partial | Sliced

FULL = Full()
PARTIAL = Partial()
