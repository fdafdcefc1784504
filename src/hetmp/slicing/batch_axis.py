"""Which axis of a value is that of the batch: found by the sizes that it was probed with."""

from collections.abc import Sequence

from hetmp.core.state import L, Sliced, State, batch_of
from hetmp.ops import Value
from hetmp.slicing.graph import Node, Trace


def images_of(trace: Trace) -> tuple[int, ...]:
    """Return the number of images in each probe of *trace*: the length of the first input.

    Nothing where it cannot be told from other sizes: the module takes one number of images only.
    """
    first = next((trace.values[name] for name in trace.entries), Value())
    numbers = tuple(sizes[0] for sizes in first.sizes if sizes)
    return numbers if len(set(numbers)) > 1 else ()


def batch_axis(
    value: Value, images: Sequence[int], channel_axis: int | None = None
) -> tuple[int, int] | None:
    """Return (axis, indices for each image) of the batch in *value*; None if it has none.

    *images* are those of each probe. The batch is not on *channel_axis*.
    """
    for axis in range(value.dims if value.is_tensor and images else 0):
        block, rest = divmod(value.sizes[0][axis], images[0])
        if axis != channel_axis and block and not rest and _is_long(value, axis, images, block):
            return axis, block
    return None


def _is_long(value: Value, axis: int, images: Sequence[int], block: int) -> bool:
    """Return whether the axis has *block* indices for each image, in every probe."""
    return len(value.sizes) == len(images) and all(
        sizes[axis] == block * number for sizes, number in zip(value.sizes, images, strict=True)
    )


def spans(value: Value, state: State[L], images: Sequence[int]) -> bool:
    """Return whether the axis that *state* has as the batch's is that of the batch in *value*.

    True for a state that is not cut along the batch.
    """
    layout = batch_of(state)
    if layout is None or not isinstance(state, Sliced):
        return True
    if not value.is_tensor:
        return False
    inside = -value.dims <= state.axis < value.dims
    return inside and _is_long(value, state.axis, images, layout.block)


def no_batch_axis(node: Node) -> str:
    """Return why a layer cannot follow scheme ``batch``."""
    return (
        f"layer {node.place} cannot follow scheme 'batch': as far as the module was read, its "
        "input has no axis that is as long as the batch: give it another scheme"
    )


def not_of_images(node: Node) -> str:
    """Return why a layer that ran on slices of the batch cannot run once more."""
    return (
        f"layer {node.place} runs on slices of the batch, and once more on a value that does not "
        "have the batch as that axis: give the layers in front of it another scheme than 'batch'"
    )
