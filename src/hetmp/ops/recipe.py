"""How tensors are computed from a layer's own, and what of these a rank needs for its share.

A weight that is computed filter by filter (standardized, scaled, normed) needs of every parameter
only what belongs to these filters. The rules of the operations say so, as they do for activations.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.state import FULL, L, OperandState, Sliced, State
from hetmp.exchange import share_of
from hetmp.ops.call import Call, Flow, OperatorRun, Value, filled
from hetmp.ops.fallback import Whole
from hetmp.ops.registry import rule_for
from hetmp.ops.rule import Cuts, Rule

_WHOLE = Whole()


@dataclass(frozen=True)
class Recipe:
    """How some tensors are computed from a layer's own, operation by operation.

    Attributes:
        tensors: the values that are parameters or buffers -> their names in the layer.
        constants: the values that are neither.
        shapes: of the parameters and buffers, by the name of the value.
        calls: the operations, in order, by the name of the result.
        results: what is computed (``weight``, ``bias``) -> the name of the value.
    """

    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    calls: Mapping[str, Call]
    results: Mapping[str, str]

    def __deepcopy__(self, memo: dict[int, object]) -> "Recipe":
        return self  # layers that are copied share what never changes

    @property
    def text(self) -> str:
        """Every operation with its operands, alike for recipes that compute the same."""
        constants = [f"{value}={_mark(tensor)}" for value, tensor in self.constants.items()]
        calls = [f"{v}={c.title}{c.args}{dict(c.kwargs)}" for v, c in self.calls.items()]
        return " ".join([str(self.tensors), *constants, *calls, str(self.results)])

    @property
    def title(self) -> str:
        """What is computed, and by which operations, in order."""
        computed = [name for name, value in self.results.items() if value in self.calls]
        titles = ", ".join(call.title for call in self.calls.values())
        return f"{' and '.join(computed)} by {titles}" if computed else ", ".join(self.results)

    def divided(self, wanted: Cuts[L]) -> "Division[L]":
        """Find what a rank needs of each tensor, to compute its share of the results.

        Args:
            wanted: how the results are cut; those that are not named are whole.

        Returns:
            The first that works: all tensors cut like the results, all but one, none. A tensor
            with as many indices as there are filters may still not be one of theirs.
        """
        cut: dict[str, State[L]] = {
            value: next(_like(shape, wanted), FULL) for value, shape in self.shapes.items()
        }
        none: dict[str, State[L]] = dict.fromkeys(cut, FULL)
        for states in (cut, *({**cut, whole: FULL} for whole in cut if cut[whole] != FULL), none):
            division = self._followed(states, wanted)
            if division is not None:
                return division
        raise AssertionError("whole results are computed from whole tensors")

    def _followed(self, tensors: Mapping[str, State[L]], wanted: Cuts[L]) -> "Division[L] | None":
        """Pass the states of the tensors through the operations; None if that needs an exchange."""
        states: dict[str, OperandState[L]] = {**dict.fromkeys(self.constants, FULL), **tensors}
        runs: dict[str, tuple[Rule, OperatorRun[L]]] = {}
        for name, call in self.calls.items():
            own = {operand: states[operand] for operand in call.operands}
            rule = rule_for(call.target)
            if rule is None or not own or rule.unfit(call) is not None:
                rule = _WHOLE
            flow: Flow[L] | None = Flow(dict.fromkeys(own, FULL), FULL)
            if any(state != FULL for state in own.values()):
                flow = rule.flow(call, own)
            if flow is None or not all(_joins(own[name], flow.wants[name]) for name in own):
                return None
            states[name] = flow.gives
            runs[name] = rule, OperatorRun(call, flow, None, flow.gives)
        results: dict[str, State[L]] = {name: wanted.get(name, FULL) for name in self.results}
        if not all(_joins(states[self.results[name]], state) for name, state in results.items()):
            return None
        return Division(self, tensors, states, runs, results)


@dataclass(frozen=True)
class Division(Generic[L]):
    """How a recipe is followed on slices.

    Attributes:
        recipe: what is followed.
        tensors: the states of the layer's tensors, by the name of the value.
        states: of all values.
        runs: the operations with their rules, in order, by the name of the result.
        results: the states that the results are wanted in.
    """

    recipe: Recipe
    tensors: Mapping[str, State[L]]
    states: Mapping[str, OperandState[L]]
    runs: Mapping[str, tuple[Rule, OperatorRun[L]]]
    results: Mapping[str, State[L]]

    @property
    def cuts(self) -> Cuts[L]:
        """How the layer's parameters and buffers are cut, by their names in the layer."""
        return {
            self.recipe.tensors[value]: state
            for value, state in self.tensors.items()
            if isinstance(state, Sliced)
        }


class Computation:
    """A recipe as one rank follows it, on its share of the tensors."""

    def __init__(self, division: Division, group: Group | None) -> None:
        """
        Args:
            division: how the recipe is followed.
            group: of the rank; None where nothing is cut.
        """
        self._division, self._rank = division, 0 if group is None else group.rank
        self._functions: dict[str, Callable[..., object]] = {
            name: _invoked(run.call) if group is None else rule.function(run, group)
            for name, (rule, run) in division.runs.items()
        }

    def __deepcopy__(self, memo: dict[int, object]) -> "Computation":
        return self

    def __call__(self, layer: nn.Module) -> dict[str, Tensor]:
        """Return this rank's share of the results, from its *layer*'s tensors."""
        division, recipe = self._division, self._division.recipe
        values: dict[str, Any] = {
            value: attrgetter(name)(layer) for value, name in recipe.tensors.items()
        }
        device = next(iter(values.values())).device
        values |= {value: tensor.to(device) for value, tensor in recipe.constants.items()}
        for name, (_, run) in division.runs.items():
            wants = run.flow.wants

            def share(operand: str, wants: Any = wants) -> Any:
                return self._in_state(values, operand, wants.get(operand, FULL))

            args, kwargs = filled(run.call.args, share), filled(run.call.kwargs, share)
            values[name] = self._functions[name](*args, **kwargs)
        return {
            name: self._in_state(values, recipe.results[name], state)
            for name, state in division.results.items()
        }

    def _in_state(self, values: Mapping[str, Any], name: str, state: Any) -> Any:
        """Return a value in a state: its own, or this rank's share of what every rank has."""
        value = values[name]
        return value if self._division.states[name] == state else share_of(value, state, self._rank)


def _invoked(call: Call) -> Callable[..., object]:
    return lambda *args, **kwargs: call.invoke(args, kwargs)


def _mark(tensor: Tensor) -> str:
    """Describe a tensor by its kind and a checksum of its values."""
    values = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} {tensor.dtype} {zlib.crc32(values):08x}"


def _joins(source: object, target: object) -> bool:
    """Return whether a value in state *source* is one in state *target* without an exchange."""
    return source == target or (source == FULL and isinstance(target, Sliced))


def _like(shape: torch.Size, wanted: Cuts[L]) -> Iterator[Sliced[L]]:
    """Yield how a tensor of *shape* may be cut, if it has an index for each of a result's."""
    for state in wanted.values():
        axis = 0 if len(shape) == 1 else state.axis
        if axis < len(shape) and shape[axis] == state.layout.total > 1:
            yield Sliced(state.layout, axis)


def value_of(tensors: object) -> Value:
    """Return the facts about what is computed from parameters: its sizes never change."""
    if isinstance(tensors, Tensor):
        return Value((tuple(tensors.shape),), (), tensors.numel() * tensors.element_size())
    return Value(items=tuple(map(value_of, tensors)) if isinstance(tensors, tuple | list) else ())
