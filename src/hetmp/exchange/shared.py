"""Exchanges through memory that the ranks of one host share: written in place, read in place.

A gather is one copy of a rank's own slice; all ranks then read the one whole tensor. A
reduce-scatter is one copy of what belongs to others; each rank then adds up what belongs to it.
Both return None where there is no room, on all ranks alike.
"""

import math
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from hetmp.comm import Group
from hetmp.exchange.arena import Arena
from hetmp.exchange.wire import HALF, narrow
from hetmp.partition import Layout

Finish = Callable[[], Tensor]


def gather(
    group: Group, x: Tensor, shape: list[int], axis: int, layout: Layout, *, borrowed: bool
) -> Finish | None:
    """Sliced -> full, of *shape*.

    With *borrowed*, ranks that compute on the CPU get the shared memory itself, which nobody
    may write to; else a copy.
    """
    arena = Arena.of(group)
    count = math.prod(shape)
    slot = arena.take(count * x.element_size()) if arena else None
    if arena is None or slot is None:
        return None
    whole, at = slot.tensor(count, x.dtype).view(shape), 0
    for piece in layout.slices(group.rank):
        place = narrow(whole, axis, piece)
        place.copy_(x.narrow(axis, at, place.shape[axis]))
        at += place.shape[axis]
    meeting, device = arena.meet(slot), x.device

    def finish() -> Tensor:
        meeting.wait()
        if device.type == "cpu" and borrowed:
            return whole
        return whole.to(device, copy=True)

    return finish


def reduce_scatter(
    group: Group, x: Tensor, shape: list[int], axis: int, layout: Layout
) -> Finish | None:
    """Partial -> sliced, of *shape*. 16-bit floats are summed as, and give, float32."""
    arena = Arena.of(group)
    others = group.size - 1
    slot = arena.take(x.numel() * others * x.element_size()) if arena else None
    if arena is None or slot is None:
        return None
    memory = slot.tensor(x.numel() * others, x.dtype)
    inner = x.numel() // max(1, layout.total)
    starts = list(accumulate((count * inner for count in layout.counts), initial=0))

    def block(source: int, target: int) -> Tensor:
        """What one rank adds to another's slice."""
        size = layout.counts[target] * inner
        begin = starts[target] * others + (source - (source > target)) * size
        sizes = [*shape]
        sizes[axis] = layout.counts[target]
        return memory[begin : begin + size].view(sizes)

    for target in range(group.size):
        if target != group.rank:
            _take(x, axis, layout, target, block(group.rank, target))
    mine = _take(x, axis, layout, group.rank, None)
    dtype, device = torch.float32 if x.dtype in HALF else x.dtype, x.device
    meeting = arena.meet(slot)

    def finish() -> Tensor:
        meeting.wait()
        summed = torch.empty(shape, dtype=dtype, device=device)
        total = mine
        for source in range(group.size):
            if source != group.rank:
                summand = block(source, group.rank).to(device)
                total = torch.add(total.to(dtype), summand.to(dtype), out=summed)
        return total

    return finish


def _take(x: Tensor, axis: int, layout: Layout, rank: int, into: Tensor | None) -> Tensor:
    """What *x* has of a rank's slice: copied *into* a block, else as it is."""
    parts = [narrow(x, axis, piece) for piece in layout.slices(rank)]
    if into is None:
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
    at = 0
    for part in parts:
        into.narrow(axis, at, part.shape[axis]).copy_(part)
        at += part.shape[axis]
    return into
