"""Flattening, reshaping and repeating: where channel order survives, slices stay slices."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.state import L, Sliced, State, States, is_batch
from hetmp.ops.call import Call, Flow, Function, OperatorRun, Shape
from hetmp.ops.own_forward import OwnForward
from hetmp.ops.rule import Rule, sized, whole_of


class Reshape(Rule):
    """Reshapes: (n, c, h, w) to other sizes of the same elements in the same order.

    Axes are merged and split in runs. A cut axis survives as the slowest of a merged run, where
    each index becomes a block, and in a split run if the cuts fall between the new indices:
    (n, c, h, w) -> (n, c*h*w), or (n, g*c, h, w) -> (n, g, c, h, w) if each g has the same cut.
    """

    layers = (nn.Flatten, nn.Unflatten)
    functions = (torch.flatten, torch.reshape, torch.unflatten)
    methods = ("flatten", "reshape", "unflatten", "view", "reshape_as", "view_as")
    views = ("Flatten", "Unflatten", *methods)
    keeps_dims = False

    def unfit(self, call: Call) -> str | None:
        if call.target == "view" and isinstance(call.argument(1, "dtype"), torch.dtype):
            return "it sees the bits as another dtype"
        return None

    def flow(self, call: Call, states: States[L]) -> Flow[L] | None:
        source, *others = states
        flow = super().flow(call, {source: states[source]})
        # Of another tensor only the shape is read: it stays as it is.
        return flow and Flow({**flow.wants, **{name: states[name] for name in others}}, flow.gives)

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        if not _is_consistent(call) and source.layout.length is not None:
            # The size of the image is unknown, but its length when flattened is known.
            size, rest = divmod(call.result.shape[-1] or 0, source.layout.length)
            plain = source.axis == 1 and call.result.dims == 2 and size > 0 == rest
            return Sliced(source.layout.scaled(size), 1) if plain else None
        runs = {
            _run_of(old_shape, new_shape, source.axis)
            for old_shape, new_shape in zip(call.operand.sizes, call.result.sizes, strict=True)
        }
        if len(runs) != 1 or (run := runs.pop()) is None:
            return None
        return _through(source, call.operand.shape, call.result.shape, *run)

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        """Return a layer with this rank's sizes; *run*, *group*, *device*: see ``Rule.local``."""
        local = sized(run.whole_layer, {}, {}, device)
        _LayerReshape(local, run, group.rank)
        return local

    def function(self, run: OperatorRun, group: Group) -> Function:
        return _LocalReshape(run, group.rank, None)


def _is_consistent(call: Call) -> bool:
    """Return whether the sizes known before and after have equally many elements."""
    return math.prod(call.operand.sizes[0]) == math.prod(call.result.sizes[0])


def _run_of(
    old_shape: Sequence[int], new_shape: Sequence[int], axis: int
) -> tuple[range, range] | None:
    """Return the shortest runs of old and new axes with the same elements that include *axis*."""
    old = new = 0
    while old < len(old_shape):
        begin = old, new
        sizes = [old_shape[old], new_shape[new] if new < len(new_shape) else 1]
        old, new = old + 1, new + 1
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                if old == len(old_shape):
                    return None
                sizes[0], old = sizes[0] * old_shape[old], old + 1
            else:
                if new >= len(new_shape):
                    return None
                sizes[1], new = sizes[1] * new_shape[new], new + 1
        if begin[0] <= axis < old:
            # An axis of one element before the run may belong to it too: it does not matter.
            return range(begin[0], old), range(begin[1], min(new, len(new_shape)))
    return None


def _through(
    source: Sliced[L], old_shape: Shape, new_shape: Shape, old: range, new: range
) -> State[L] | None:
    before = [old_shape[axis] for axis in old if axis < source.axis]
    behind = [old_shape[axis] for axis in old if axis > source.axis]
    if any(size != 1 for size in before) or None in behind:
        return None
    layout = source.layout.scaled(math.prod(size for size in behind if size is not None))
    # Now the run is one axis cut by the layout, and is split into the new axes.
    if layout.length is None:
        return _split_batch(layout, new_shape, new)
    left = layout.length
    for axis in new:
        size = new_shape[axis]
        if axis == new[-1]:
            return Sliced(layout, axis)
        if size is None:
            return None
        left //= size
        if size == 1:
            continue
        # Of the two halves of a split, the longer one can be shared out more finely.
        inner = layout.folded(size) if size < left else None
        outer = layout.grouped(left) if inner is None else None
        if outer is not None:
            return Sliced(outer, axis)
        part = layout.folded(size) if inner is None else inner
        if part is None:
            return None
        layout = part
    return None


def _split_batch(layout: L, new_shape: Shape, new: range) -> State[L] | None:
    """Return how the first of the *new* axes is cut that has the images of the batch.

    Their number is None among the sizes in *new_shape*.
    """
    for axis in new:
        if new_shape[axis] == 1:
            continue
        inner = [new_shape[behind] for behind in new if behind > axis]
        if new_shape[axis] is not None or None in inner:
            return None
        images = layout.grouped(math.prod(size for size in inner if size is not None))
        return None if images is None else Sliced(images, axis)
    return None


def _leads(source: Sliced, whole: tuple[int, ...], target: Sliced, shape: tuple[int, ...]) -> bool:
    """Return whether a reshape of *whole* to *shape* leads from *source* to *target*.

    Both sizes are known.
    """
    if is_batch(target):
        # With one image, axes of one element are as good as the batch's: what counts is the order.
        before, behind = whole[: source.axis], shape[: target.axis]
        same_order = math.prod(before) == math.prod(behind)
        return same_order and shape[target.axis] == target.layout.total
    run = _run_of(whole, shape, source.axis)
    return run is not None and _through(source, whole, shape, *run) == target


class _LocalReshape:
    """Reshapes this rank's share; sizes are those of the whole with the cut axis's replaced.

    Args:
        run: the call, which says how the tensor is cut.
        rank: this rank.
        forward: what the layer computes from a whole tensor; None for a function or method.
    """

    def __init__(self, run: OperatorRun, rank: int, forward: Function | None) -> None:
        self._run, self._rank, self._forward = run, rank, forward

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        source, target = self._run.source, self._run.target
        call = self._run.call
        stand_in = whole_of(x, source)
        whole = tuple(stand_in.shape)
        if call.title in ("reshape_as", "view_as"):
            (*_, state), (like,) = self._run.flow.wants.values(), (*args, *kwargs.values())
            assert isinstance(like, Tensor)
            args, kwargs = (whole_of(like, state),), {}
        if self._forward is not None:
            shape = tuple(self._forward(stand_in).shape)
        else:
            shape = tuple(call.invoke((stand_in, *args), kwargs).shape)
        if not isinstance(source, Sliced):
            return x.reshape(shape)
        assert isinstance(target, Sliced)
        if not _leads(source, whole, target, shape):
            raise HetmpError(
                f"the model was not sliced for a {call.title} of {tuple(whole)} to {tuple(shape)}: "
                "give slice_model an example_input of the sizes that it will meet"
            )
        local = list(shape)
        local[target.axis] = target.layout.counts[self._rank]
        return x.reshape(local)


class _LayerReshape(OwnForward):
    """What a layer that reshapes runs on this rank's share."""

    def __init__(self, layer: nn.Module, run: OperatorRun, rank: int) -> None:
        super().__init__(layer)
        self._reshape = _LocalReshape(run, rank, self.usual)

    def __call__(self, x: Tensor) -> Tensor:
        """Return *x* in its new shape."""
        return self._reshape(x)


class Repeat(Rule):
    """``repeat`` and ``tile``: a cut axis is joined with itself, as by ``cat``."""

    functions = (torch.tile,)
    methods = ("repeat", "tile")

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        asked = call.args[1:] or tuple(call.kwargs.values())
        sizes = asked[0] if len(asked) == 1 and isinstance(asked[0], tuple | list) else asked
        from_right = source.axis - call.operand.dims
        times = sizes[from_right] if len(sizes) >= -from_right else 1
        if not isinstance(times, int) or times < 1:
            return None
        layout = source.layout.joined([source.layout] * times)
        return None if layout is None else Sliced(layout, call.result.dims + from_right)


class RepeatInterleave(Rule):
    """``repeat_interleave``: each index of a cut axis becomes a block of repetitions."""

    functions = (torch.repeat_interleave,)
    methods = ("repeat_interleave",)

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        times, dim = call.argument(1, "repeats"), call.argument(2, "dim")
        if not isinstance(times, int) or not isinstance(dim, int):
            return None
        if dim % call.operand.dims != source.axis:
            return source
        if times < 1 or call.kwargs.get("output_size") is not None:
            return None
        return Sliced(source.layout.scaled(times), source.axis)
