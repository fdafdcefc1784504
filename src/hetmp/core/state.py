"""How an activation lies over the ranks: the three states, as data.

The gradient of a full activation is partial, of a sliced one sliced, of a partial one full:
that one rule makes every exchange's backward the adjoint of its forward.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from typing_extensions import TypeVar

from hetmp.core.batch_layout import BatchLayout
from hetmp.core.cuttable import Cuttable
from hetmp.core.partition import Layout

L = TypeVar("L", bound=Cuttable, default=Layout)
"""How an axis is cut: a ``Layout``; an ``open_axis.Axis`` while channel groups are looked for."""


@dataclass(frozen=True)
class Full:
    """Every rank holds all of it."""

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True)
class Partial:
    """Every rank holds all of a summand; the truth is the sum over the ranks."""

    def __str__(self) -> str:
        return "partial"


@dataclass(frozen=True)
class Sliced(Generic[L]):
    """Each rank holds its own indices of one axis, as the layout says."""

    layout: L
    axis: int = 1

    def __str__(self) -> str:
        batch = batch_of(self)
        if batch is not None:
            return f"batch {batch}"
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


def batch_of(state: object) -> BatchLayout | None:
    """Return how a value in *state* is cut along the batch; None if it is not."""
    layout: object = state.layout if isinstance(state, Sliced) else None
    return layout if isinstance(layout, BatchLayout) else None


def is_batch(state: object) -> bool:
    """Return whether a value in *state* is cut along the batch."""
    return batch_of(state) is not None


def channels_of(state: OperandState[L]) -> L | None:
    """Return how a value in *state* is cut along an axis of channels; None if it is not."""
    return state.layout if isinstance(state, Sliced) and not is_batch(state) else None


def at_arrival(state: State, images: int | None) -> State:
    """Return *state* for a batch of so many *images*: with the indices of each rank.

    A state that is not cut along the batch stays as it is.
    """
    layout = batch_of(state)
    if layout is None:
        return state
    assert isinstance(state, Sliced)
    assert images is not None
    return Sliced(layout.of(images), state.axis)
