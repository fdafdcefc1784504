"""``x[index] = value``: a new value of which a part is another."""

from typing import Any

from torch import Tensor

from hetmp.ops.call import Call, Flow
from hetmp.ops.pieces import index_of
from hetmp.ops.rule import Rule, States
from hetmp.state import Sliced


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """What *x* is after ``x[index] = value``; *x* itself stays."""
    changed = x.clone()
    changed[index] = value
    return changed


class Assignment(Rule):
    """A number put where the index says: every channel for itself if it takes all of them."""

    functions = (assigned,)

    def flow(self, call: Call, states: States) -> Flow | None:
        name = next(iter(states))
        state = states[name]
        if len(states) > 1 or not isinstance(state, Sliced):
            return None
        found = index_of(call, state.axis)
        return Flow({name: state}, state) if found and found[1] == slice(None) else None
