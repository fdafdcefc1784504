"""Operations that torch refuses without channels: one of zeros is computed and dropped."""

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.state import Sliced
from hetmp.ops.call import Call, Function, OperatorRun
from hetmp.ops.rule import Rule


def with_zeros(x: Tensor, axis: int, width: int) -> Tensor:
    """Append *width* indices of zeros to *x* on *axis*: the result has *width* more there."""
    shape = list(x.shape)
    shape[axis] = width
    return torch.cat([x, x.new_zeros(shape)], axis)


class Spare(nn.Module):
    """An operation of one or more tensors that are cut alike, and of which this rank holds none.

    Unlike ``Idle`` it may take and give several tensors.
    """

    def __init__(self, compute: Function, axis: int, width: int = 1) -> None:
        """
        Args:
            compute: the operation.
            axis: of all tensors, the one that has no indices here.
            width: how many indices the operation wants there at least.
        """
        super().__init__()
        self._compute = (compute,)  # in a tuple: a layer would become a submodule
        self._axis, self._width = axis, width

    def forward(self, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        """Return the operation's result for zeros, cut to no elements."""

        def filled(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            return with_zeros(x, self._axis, self._width)

        output = self._compute[0](
            *map(filled, args), **{name: filled(arg) for name, arg in kwargs.items()}
        )
        if isinstance(output, Tensor):
            return output.narrow(self._axis, 0, 0)
        return tuple(item.narrow(self._axis, 0, 0) for item in output)

    def extra_repr(self) -> str:
        compute = self._compute[0]
        return f"{getattr(compute, '__name__', type(compute).__name__)} of no channels"


class Spared(Rule):
    """Operations that run as a ``Spare`` on a rank that holds nothing of the first operand."""

    def spare_width(self, call: Call) -> int | None:
        """Return how many indices the operation needs; None if it runs without any."""
        return 1

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        """Return this rank's share; on a rank with nothing, a layer that spares the operator.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        return _spare(self, run, group) or super().local(run, group, device)

    def function(self, run: OperatorRun, group: Group) -> Function:
        return _spare(self, run, group) or super().function(run, group)


def _spare(rule: Spared, run: OperatorRun, group: Group) -> Spare | None:
    source, width = run.source, rule.spare_width(run.call)
    if width is None or not isinstance(source, Sliced) or source.layout.counts[group.rank] > 0:
        return None
    compute = run.call.target
    assert not isinstance(compute, str)
    return Spare(compute, source.axis, width)
