"""On a rank without channels: where torch refuses none, one of zeros is computed and dropped."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.comm import Group
from hetmp.ops.call import Run
from hetmp.state import Sliced


def holds_nothing(run: Run, group: Group) -> bool:
    """Whether this rank has no index of the axis along which the first operand is cut."""
    source = run.source
    return isinstance(source, Sliced) and source.layout.counts[group.rank] == 0


class Spare(nn.Module):
    """An operation of one or more tensors that are cut alike, and of which this rank holds none.

    Unlike ``Idle`` it may take and give several tensors.
    """

    def __init__(self, compute: Callable[..., Any], axis: int, width: int = 1) -> None:
        """
        Args:
            compute: the operation.
            axis: of all tensors, the one that has no indices here.
            width: how many indices the operation wants there at least.
        """
        super().__init__()
        self._compute = (compute,)  # in a tuple: a layer would become a submodule
        self._axis, self._width = axis, width

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the operation gives of zeros, without an element of it."""

        def filled(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            shape = list(x.shape)
            shape[self._axis] = self._width
            return torch.cat([x, x.new_zeros(shape)], self._axis)

        given = self._compute[0](
            *map(filled, args), **{name: filled(arg) for name, arg in kwargs.items()}
        )
        if isinstance(given, Tensor):
            return given.narrow(self._axis, 0, 0)
        return tuple(item.narrow(self._axis, 0, 0) for item in given)

    def extra_repr(self) -> str:
        compute = self._compute[0]
        return f"{getattr(compute, '__name__', type(compute).__name__)} of no channels"
