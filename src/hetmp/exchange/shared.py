"""Exchanges through memory that the ranks of one host share: written in place, read in place.

A gather is one copy of a rank's own slice; all ranks then read the one whole tensor. In a
reduce-scatter a rank copies its summands of the other ranks' slices; each rank then adds up its
own. Both return None, on all ranks, where there is no room.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.exchange.arena import Arena
from hetmp.exchange.packing import HALF, narrow

ROUND_BYTES = 2**24
"""Bytes that one round of a reduce-scatter shares; smaller rounds take longer in all."""

Finish = Callable[[], Tensor]


def tidy(group: Group) -> None:
    """Free the slots of earlier exchanges that no rank uses now. Collective; before a pass."""
    if slots := free_slots(group):
        numbers = np.frombuffer(slots, dtype=np.int64)
        take_back(group, group.allgather(numbers, "the free slots"))


def free_slots(group: Group) -> bytes:
    """Return which slots this rank no longer uses, for ``take_back`` on all ranks.

    As many bytes on every rank; none where they have shared no memory yet.
    """
    arena = group.cache.get("arena")
    return arena.free_slots() if isinstance(arena, Arena) else b""


def take_back(group: Group, everyones: npt.NDArray[Any]) -> None:
    """Free the slots that no rank uses.

    *everyones* is ``free_slots`` of all ranks, as integers: (ranks, ...).
    """
    arena = group.cache["arena"]
    assert isinstance(arena, Arena)
    arena.take_back(everyones)


def gather(
    group: Group, x: Tensor, shape: list[int], axis: int, layout: Layout, *, borrowed: bool
) -> Finish | None:
    """Gather slices: sliced -> full, of *shape*. Collective; None where there is no room.

    x: (..., c_local, ...), this rank's slice on *axis*, which *layout* cuts over the ranks of
    *group*. Return a function that waits for the whole tensor: with *borrowed*, on the CPU, the
    shared memory itself, which no rank may write to; else a copy.
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
    """Sum and slice: partial -> sliced, of *shape*. 16-bit floats are summed as float32.

    x: (..., c, ...), a summand; *layout* cuts its *axis* over the ranks of *group*. Collective;
    None where there is no room. Goes through the first dimension in rounds, each written while the
    one before is under way, so that little memory is shared however large *x* is.
    """
    arena = Arena.of(group)
    if arena is None:
        return None
    summed = torch.empty(shape, dtype=_summing(x.dtype), device=x.device)
    rows = x.shape[0] if axis % x.dim() else 1
    size = x.numel() * x.element_size() * (group.size - 1)
    round_rows = max(1, ROUND_BYTES * rows // max(1, size))
    before: Callable[[], None] | None = None
    for row in range(0, max(1, rows), round_rows):
        part, into = x, summed
        if axis % x.dim():
            part, into = x[row : row + round_rows], summed[row : row + round_rows]
        add_up = _write(group, arena, part, into, axis, layout)
        if before is not None:
            before()
        if add_up is None:
            return None
        before = add_up
    assert before is not None
    last = before

    def finish() -> Tensor:
        last()
        return summed

    return finish


def _write(
    group: Group, arena: Arena, x: Tensor, into: Tensor, axis: int, layout: Layout
) -> Callable[[], None] | None:
    """Write the other ranks' summands; return a function that adds theirs up *into* this rank's."""
    others = group.size - 1
    slot = arena.take(x.numel() * others * x.element_size())
    if slot is None:
        return None
    memory = slot.tensor(x.numel() * others, x.dtype)
    inner = x.numel() // max(1, layout.total)
    starts = list(accumulate((count * inner for count in layout.counts), initial=0))
    sizes = list(x.shape)

    def block(source: int, target: int) -> Tensor:
        """Return the memory of what rank *source* adds to rank *target*'s slice."""
        count = layout.counts[target]
        begin = starts[target] * others + (source - (source > target)) * count * inner
        sizes[axis] = count
        return memory[begin : begin + count * inner].view(sizes)

    for target in range(group.size):
        if target != group.rank:
            _copy(x, axis, layout, target, block(group.rank, target))
    mine = [narrow(x, axis, piece) for piece in layout.slices(group.rank)]
    meeting = arena.meet(slot)

    def add_up() -> None:
        meeting.wait()
        total = mine[0] if len(mine) == 1 else torch.cat(mine, dim=axis)
        for source in range(group.size):
            if source != group.rank:
                summand = block(source, group.rank).to(into.device)
                total = torch.add(total.to(into.dtype), summand.to(into.dtype), out=into)

    return add_up


def _copy(x: Tensor, axis: int, layout: Layout, rank: int, into: Tensor) -> None:
    """Copy a rank's slice of *x* *into* a block of its size."""
    at = 0
    for piece in layout.slices(rank):
        part = narrow(x, axis, piece)
        into.narrow(axis, at, part.shape[axis]).copy_(part)
        at += part.shape[axis]


def _summing(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype
