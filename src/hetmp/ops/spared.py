"""Operations that torch refuses without channels: one of zeros is computed and dropped."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.state import Sliced, is_batch
from hetmp.ops.call import Call, Function, OperatorRun
from hetmp.ops.own_forward import OwnForward
from hetmp.ops.rule import Rule, sized


def with_zeros(x: Tensor, axis: int, width: int) -> Tensor:
    """Append *width* indices of zeros to *x* on *axis*: the result has *width* more there."""
    shape = list(x.shape)
    shape[axis] = width
    return torch.cat([x, x.new_zeros(shape)], axis)


class Spare:
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
        self._compute = compute
        self._axis, self._width = axis, width

    def __call__(self, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        """Return the operation's result for zeros, cut to no elements."""

        def filled(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            return with_zeros(x, self._axis, self._width)

        output = self._compute(
            *map(filled, args), **{name: filled(arg) for name, arg in kwargs.items()}
        )
        if isinstance(output, Tensor):
            return output.narrow(self._axis, 0, 0)
        return tuple(item.narrow(self._axis, 0, 0) for item in output)


class SparedLayer(OwnForward):
    """What a layer runs on a rank that holds nothing of its first operand."""

    def __init__(self, layer: nn.Module, axis: int, width: int) -> None:
        """
        Args:
            layer: what computes.
            axis, width: as for ``Spare``.
        """
        super().__init__(layer)
        self._spare = Spare(self.usual, axis, width)

    def __call__(self, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        """Return the layer's output for zeros, cut to no elements."""
        return self._spare(*args, **kwargs)


class SparedImages(Rule):
    """Operations that torch does not run, or not backward, on a batch of no images."""

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        """Return this rank's share of a layer; *run*, *group* and *device*: see ``Rule.local``."""
        local = super().local(run, group, device)
        if is_batch(run.source):
            assert isinstance(run.source, Sliced)
            SparedImagesLayer(local, run.source.axis)
        return local

    def function(self, run: OperatorRun, group: Group) -> Function:
        compute = super().function(run, group)
        if not is_batch(run.source):
            return compute
        assert isinstance(run.source, Sliced)
        return partial(_spare_images, compute, run.source.axis)


class SparedImagesLayer(OwnForward):
    """What such a layer runs on a rank's images, which are on *axis* of its first operand."""

    def __init__(self, layer: nn.Module, axis: int = 0) -> None:
        super().__init__(layer)
        self._axis = axis

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Any:
        """Return the layer's output for *x*, (images of this rank, ...)."""
        return _spare_images(self.usual, self._axis, x, *args, **kwargs)


def _spare_images(compute: Function, axis: int, x: Tensor, *args: object, **kwargs: object) -> Any:
    return (compute if x.shape[axis] else Spare(compute, axis))(x, *args, **kwargs)


class Spared(SparedImages):
    """Operations that run as a ``Spare`` on a rank that holds nothing of the first operand."""

    def spare_width(self, call: Call) -> int | None:
        """Return how many indices the operation needs; None if it runs without any."""
        return 1

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        """Return this rank's share; on a rank with nothing, a layer that spares the operator.

        *run*, *group* and *device* are as in ``Rule.local``.
        """
        spared = _spared(self, run, group)
        if spared is None:
            return super().local(run, group, device)
        local = sized(run.whole_layer, {}, {}, device)
        SparedLayer(local, *spared)
        return local

    def function(self, run: OperatorRun, group: Group) -> Function:
        spared = _spared(self, run, group)
        if spared is None:
            return super().function(run, group)
        assert not isinstance(run.call.target, str)
        return Spare(run.call.target, *spared)


def _spared(rule: Spared, run: OperatorRun, group: Group) -> tuple[int, int] | None:
    """Return (axis, width) for a rank that holds nothing of the first operand, else None."""
    source, width = run.source, rule.spare_width(run.call)
    if is_batch(source):
        return None  # which rank has no images is known when it runs
    if width is None or not isinstance(source, Sliced) or source.layout.counts[group.rank] > 0:
        return None
    return source.axis, width
