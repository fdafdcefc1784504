"""Batch norm as a function, of operands that belong to no layer."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from hetmp.cluster import Group
from hetmp.core.state import L, OperandState, Sliced, States
from hetmp.ops.call import Call, Flow, OperatorRun, Ref
from hetmp.ops.rule import Rule
from hetmp.ops.spared import with_zeros

_OPERANDS = ("input", "running_mean", "running_var", "weight", "bias")


class BatchNormFunction(Rule):
    """Statistics are per channel: slopes, biases and statistics are cut like the channels."""

    functions = (F.batch_norm,)

    def unfit(self, call: Call) -> str | None:
        training = call.argument(5, "training", False)
        if not isinstance(training, bool):
            return "its mode is not known before it runs"
        if training and {"running_mean", "running_var"} & set(_operands(call).values()):
            return "it changes statistics that belong to no layer"
        return None

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        x = call.operands[0]
        source = states[x]
        if not isinstance(source, Sliced) or source.axis != 1:
            return None
        wants: dict[str, OperandState[L]] = dict.fromkeys(states, Sliced(source.layout, 0))
        return Flow({**wants, x: source}, source)

    def function(self, run: OperatorRun, group: Group) -> Callable[..., object]:
        source = run.source
        if not isinstance(source, Sliced) or source.layout.counts[group.rank]:
            return super().function(run, group)

        # torch refuses slopes of no channels: one channel is computed, and dropped.
        def normalize(x: Tensor, *args: object, **kwargs: object) -> Tensor:
            def filled(item: object) -> object:
                return with_zeros(item, 0, 1) if isinstance(item, Tensor) else item

            named = {name: filled(item) for name, item in kwargs.items()}
            result: Tensor = run.call.invoke((with_zeros(x, 1, 1), *map(filled, args)), named)
            return result.narrow(1, 0, 0)

        return normalize


def _operands(call: Call) -> dict[str, str]:
    """Return the names of the operands that are given -> what batch norm calls them."""
    arguments = {name: call.argument(place, name) for place, name in enumerate(_OPERANDS)}
    return {item.name: name for name, item in arguments.items() if isinstance(item, Ref)}
