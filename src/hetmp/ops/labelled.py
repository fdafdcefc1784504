"""Operations of several tensors whose axes have labels: a cut label is cut wherever it stands.

An operand without the cut label stays full; each rank then computes a summand of its gradient.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from hetmp.core.state import FULL, PARTIAL, L, OperandState, Sliced, State, States
from hetmp.ops.call import Call, Flow, Ref

Labels = Sequence[Hashable]
"""A label for every axis of a tensor."""


@dataclass(frozen=True)
class Labelled:
    """The labels of the axes of a call's operands and result: equal labels are cut alike.

    Attributes:
        operands: (name, labels) of every operand; what stands twice in the call is here twice.
        result: the labels of the result.
        sums: the labels over which products of all operands are summed. A label that is neither
            here nor in the result cannot be cut.
    """

    operands: Sequence[tuple[str, Labels]]
    result: Labels
    sums: Collection[Hashable] = ()

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        """Cut the label along which most bytes of the operands are cut already.

        Slices of the result if it has the label, summands if the label is summed over.
        """
        best: tuple[int, Flow[L] | None] = (0, None)
        for name, labels in self.operands:
            state = states[name]
            if not isinstance(state, Sliced):
                continue
            flow = self._cut(call, labels[state.axis], state)
            staying = 0 if flow is None else _staying(call, states, flow)
            if staying > best[0]:
                best = staying, flow
        return best[1]

    def _cut(self, call: Call, label: Hashable, state: Sliced[L]) -> Flow[L] | None:
        layout = state.layout
        wants: dict[str, OperandState[L]] = {}
        for name, labels in self.operands:
            places = [axis for axis, axis_label in enumerate(labels) if axis_label == label]
            if len(places) > 1:
                return None  # a diagonal
            size = call.values[name].shape[places[0]] if places else 1
            cut = bool(places) and size == layout.length
            if not cut and size != 1:
                return None
            want: State[L] = Sliced(layout, places[0]) if cut else FULL
            if wants.setdefault(name, want) != want:
                return None
        if label not in self.result:
            return Flow(wants, PARTIAL) if label in self.sums else None
        axis = list(self.result).index(label)
        if call.result.shape[axis] != layout.length:
            return None  # the axis is stretched to another operand's
        return Flow(wants, Sliced(layout, axis))


def _staying(call: Call, states: States[L], flow: Flow[L]) -> int:
    """Return the bytes of the operands that hardly move: they are cut along that axis already."""
    return sum(
        1 + call.values[name].image_bytes
        for name, want in flow.wants.items()
        if isinstance(want, Sliced)
        and isinstance(have := states[name], Sliced)
        and have.axis == want.axis
    )


def tensor_names(call: Call, *arguments: object) -> list[str] | None:
    """Return the names of *arguments*; None if one of them is not a tensor of the graph's."""
    names = [argument.name for argument in arguments if isinstance(argument, Ref)]
    known = len(names) == len(arguments) and all(call.values[name].is_tensor for name in names)
    return names if known else None


def from_right(dims: int) -> list[Hashable]:
    """Return labels for *dims* axes as broadcasting aligns them: counted from the right."""
    return [axis - dims for axis in range(dims)]
