"""How a tensor looks to MPI: shares one after the other, in a host array of a dtype it knows.

Shape legend: ``inner`` is the product of all sizes but the sliced axis's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout
from hetmp.core.state import Sliced, State
from hetmp.exchange.collectives import Array, Operation

HALF = (torch.float16, torch.bfloat16)
"""The floats that MPI cannot sum."""

_AS_THEY_ARE = (torch.float32, torch.float64, torch.int32, torch.int64, torch.int16, torch.uint8)


def whole_size(shape: Sequence[int], state: State) -> int:
    """Return the elements of the whole value of which a rank has *shape* in *state*."""
    if not isinstance(state, Sliced):
        return math.prod(shape)
    axis = state.axis % len(shape)
    return math.prod(shape[:axis]) * state.layout.total * math.prod(shape[axis + 1 :])


def pack(x: Tensor, axis: int, layout: Layout) -> Tensor:
    """Return the shares of all ranks, one after the other, each row-major, as a flat tensor.

    x: (..., layout.total, ...), whole along *axis*. Not collective, like all of this module.
    """
    if _in_order(list(x.shape), axis, layout):
        return x.reshape(-1)
    blocks = [
        torch.cat([narrow(x, axis, piece) for piece in layout.slices(rank)], dim=axis)
        if len(layout.pieces) > 1
        else narrow(x, axis, layout.slices(rank)[0])
        for rank in range(layout.ranks)
    ]
    return torch.cat([block.reshape(-1) for block in blocks])


def unpack(flat: Tensor, shape: list[int], axis: int, layout: Layout) -> Tensor:
    """Return the tensor of *shape*, whole along *axis*, that ``pack`` flattened.

    *flat* has the shares of all ranks, one after the other, as *layout* cuts the axis. May return a
    view of it.
    """
    if _in_order(shape, axis, layout):
        return flat.view(shape)
    blocks: list[list[Tensor]] = [[] for _ in layout.pieces]
    inner, at = inner_size(shape, axis), 0
    for rank, count in enumerate(layout.counts):
        block_shape = list(shape)
        block_shape[axis] = count
        block = flat[at : at + count * inner].view(block_shape)
        at += count * inner
        start = 0
        for parts, piece in zip(blocks, layout.slices(rank), strict=True):
            size = piece.stop - piece.start
            parts.append(block.narrow(axis, start, size))
            start += size
    return torch.cat([part for parts in blocks for part in parts], dim=axis)


def _in_order(shape: list[int], axis: int, layout: Layout) -> bool:
    """Return whether the shares already lie one after the other in a row-major tensor."""
    return len(layout.pieces) == 1 and math.prod(shape[: axis % len(shape)]) == 1


def narrow(x: Tensor, axis: int, piece: slice) -> Tensor:
    """Return a view of *x*: the indices of *piece* along *axis*."""
    return x.narrow(axis, piece.start, piece.stop - piece.start)


def with_axis(x: Tensor, axis: int, size: int) -> list[int]:
    """Return the shape of *x* with *size* in the place of *axis*."""
    shape = list(x.shape)
    shape[axis] = size
    return shape


def inner_size(shape: list[int], axis: int) -> int:
    """Return the number of elements at one index of *axis*."""
    axis %= len(shape)
    return math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])


@dataclass
class Wire:
    """A flat tensor as an array that MPI takes, and the way back to its dtype and device."""

    array: Array
    carried: torch.dtype
    dtype: torch.dtype
    device: torch.device

    def back(self, operation: Operation) -> Tensor:
        """Return the received array as a flat tensor, once it has arrived."""
        arrived = torch.from_numpy(operation.wait())
        if self.carried in (torch.int16, torch.uint8):
            arrived = arrived.view(self.dtype)
        return arrived.to(device=self.device, dtype=self.dtype)


def check_dtype(x: Tensor, *, summed: bool) -> None:
    """Refuse a tensor whose dtype cannot be exchanged.

    Raises:
        HetmpError: naming the dtype and those that can be exchanged.
    """
    if x.dtype in (*_AS_THEY_ARE, *HALF) or (x.dtype is torch.bool and not summed):
        return
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*_AS_THEY_ARE, *HALF))
    raise HetmpError(
        f"{x.dtype} cannot be exchanged: convert it to {names} or, where nothing is summed, bool"
    )


def to_wire(flat: Tensor, *, summed: bool) -> Wire:
    """Return *flat* as a host array: 16-bit floats are summed as float32, and moved as bits.

    Masks and counts travel too, as bytes and as they are.

    A GPU's tensor is staged through pinned memory; MPI sees it when the copy has ended.
    """
    carried = flat.dtype
    on_wire = flat
    if flat.dtype in HALF:
        carried = torch.float32 if summed else torch.int16
        on_wire = flat.float() if summed else flat.contiguous().view(torch.int16)
    elif flat.dtype is torch.bool:
        carried, on_wire = torch.uint8, flat.contiguous().view(torch.uint8)
    if flat.is_cuda:
        staged = torch.empty(on_wire.shape, dtype=on_wire.dtype, pin_memory=True)
        staged.copy_(on_wire, non_blocking=True)
        torch.cuda.current_stream(flat.device).synchronize()
        on_wire = staged
    return Wire(on_wire.contiguous().numpy(), carried, flat.dtype, flat.device)
