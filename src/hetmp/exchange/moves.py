"""Moving a tensor from one state to another: packing, the collective, unpacking.

Not differentiable: ``exchange.py`` pairs each move with its adjoint. On the wire a block is the
rank's share in row-major order, whatever the memory format, so ranks need not agree on one.

Shape legend: ``inner`` is the product of all sizes but the sliced axis's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hetmp.comm import Group
from hetmp.errors import HetmpError
from hetmp.exchange import collectives
from hetmp.exchange.collectives import Operation
from hetmp.exchange.rehearsal import rehearse
from hetmp.pace import Pace
from hetmp.partition import Layout
from hetmp.state import Full, Partial, Sliced, State

_HALF = (torch.float16, torch.bfloat16)

_AS_THEY_ARE = (torch.float32, torch.float64, torch.int32, torch.int64, torch.int16, torch.uint8)


@dataclass
class Counter:
    """What the moves of one exchange cost this rank, summed since it was made.

    ``bytes`` are those that this rank must receive from others: for a gather the other ranks'
    slices, for a reduce-scatter its own slice from each other rank, for an all-reduce
    ``2 (P - 1) / P`` of the tensor (Patarasuk and Yuan, 2009). ``seconds`` include packing and
    waiting for slower ranks.
    """

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Move:
    """A tensor under way between two states: ``wait()`` gives it as it arrived."""

    def __init__(
        self, counter: Counter, began: float, finish: Callable[[], Tensor], pace: Pace
    ) -> None:
        self._counter, self._finish, self._pace = counter, finish, pace
        counter.calls += 1
        counter.seconds += time.perf_counter() - began
        pace.resume()

    def wait(self) -> Tensor:
        """Wait for the tensor."""
        self._pace.worked()
        began = time.perf_counter()
        arrived = self._finish()
        self._counter.seconds += time.perf_counter() - began
        self._pace.resume()
        return arrived


def start(
    group: Group,
    tensor: Tensor,
    source: State,
    target: State,
    counter: Counter,
    *,
    blocking: bool = False,
) -> Move:
    """Begin to move *tensor* from *source* to *target*. Collective over *group*.

    *tensor* is left as it is and must not change until ``wait()``. ``blocking`` uses the
    blocking collective, which MPI libraries run faster when nothing happens in between.

    Raises:
        HetmpError: the states do not join, the dtype is none that is exchanged, or the tensor
            has not the share that *source* says.
    """
    group.pace.worked()
    began = time.perf_counter()
    name, move = _move(source, target)
    if isinstance(source, Sliced):
        _check_axis(tensor, source.axis, source.layout.counts[group.rank], source, group)
    elif isinstance(target, Sliced):
        _check_axis(tensor, target.axis, target.layout.total, target, group)
    if group.rehearsing and name != "-":
        finish = rehearse(group, tensor, source, target)
    else:
        finish = move(group, tensor.detach(), source, target, counter, blocking)
    return Move(counter, began, finish, group.pace)


def _check_axis(tensor: Tensor, axis: int, size: int, state: Sliced, group: Group) -> None:
    total = state.layout.total
    if not -tensor.dim() <= axis < tensor.dim() or tensor.shape[axis] != size:
        holds = "" if size == total else f" and rank {group.rank} holds {size} indices of it"
        raise HetmpError(
            f"axis {axis} is {total} long in the layout{holds}, got a tensor of shape "
            f"{tuple(tensor.shape)}"
        )


def _gather(
    group: Group, x: Tensor, source: Sliced, target: Full, counter: Counter, blocking: bool
) -> Callable[[], Tensor]:
    layout, axis = source.layout, source.axis
    shape = _with_axis(x, axis, layout.total)
    inner = _inner(shape, axis)
    counts = [count * inner for count in layout.counts]
    wire = _to_wire(x.reshape(-1), summed=False)
    operation = collectives.allgatherv(group, wire.array, counts, blocking=blocking)
    counter.bytes += (sum(counts) - wire.array.size) * wire.array.itemsize
    return lambda: _unpack(wire.back(operation), shape, axis, layout)


def _reduce_scatter(
    group: Group, x: Tensor, source: Partial, target: Sliced, counter: Counter, blocking: bool
) -> Callable[[], Tensor]:
    layout, axis = target.layout, target.axis
    shape = _with_axis(x, axis, layout.counts[group.rank])
    inner = _inner(shape, axis)
    counts = [count * inner for count in layout.counts]
    wire = _to_wire(_pack(x, axis, layout), summed=True)
    operation = collectives.reduce_scatter(group, wire.array, counts, blocking=blocking)
    counter.bytes += (group.size - 1) * counts[group.rank] * wire.array.itemsize
    return lambda: wire.back(operation).view(shape)


def _reduce(
    group: Group, x: Tensor, source: Partial, target: Full, counter: Counter, blocking: bool
) -> Callable[[], Tensor]:
    wire = _to_wire(x.reshape(-1), summed=True)
    operation = collectives.allreduce(group, wire.array, blocking=blocking)
    counter.bytes += 2 * (group.size - 1) * wire.array.nbytes // group.size
    return lambda: wire.back(operation).view(x.shape)


def _keep(
    group: Group, x: Tensor, source: Full, target: Sliced, counter: Counter, blocking: bool
) -> Callable[[], Tensor]:
    slices = target.layout.slices(group.rank)
    kept = torch.cat([_narrow(x, target.axis, piece) for piece in slices], dim=target.axis)
    return lambda: kept


def _place(
    group: Group, x: Tensor, source: Sliced, target: Partial, counter: Counter, blocking: bool
) -> Callable[[], Tensor]:
    axis, at = source.axis, 0
    summand = x.new_zeros(_with_axis(x, axis, source.layout.total))
    for piece in source.layout.slices(group.rank):
        size = piece.stop - piece.start
        _narrow(summand, axis, piece).copy_(x.narrow(axis, at, size))
        at += size
    return lambda: summand


def _redistribute(
    group: Group, x: Tensor, source: Sliced, target: Sliced, counter: Counter, blocking: bool
) -> Callable[[], Tensor]:
    if source.axis % x.dim() != target.axis % x.dim() or source.layout.total != target.layout.total:
        raise HetmpError(f"{source} and {target} are not the same axis")
    axis = source.axis
    shape = _with_axis(x, axis, target.layout.counts[group.rank])
    inner = _inner(shape, axis)
    ranks = range(group.size)
    shared = [[overlaps(source.layout, s, target.layout, t) for t in ranks] for s in ranks]
    sizes = [[sum(piece.size for piece in pair) for pair in row] for row in shared]
    counts = np.array(sizes, dtype=np.int64) * inner
    outgoing = [
        x.narrow(axis, piece.source, piece.size).reshape(-1)
        for pair in shared[group.rank]
        for piece in pair
    ]
    wire = _to_wire(torch.cat(outgoing) if outgoing else x.new_empty(0), summed=False)
    operation = collectives.alltoallv(group, wire.array, counts, blocking=blocking)
    received = int(counts[:, group.rank].sum() - counts[group.rank, group.rank])
    counter.bytes += received * wire.array.itemsize

    def finish() -> Tensor:
        flat, arrived, at = wire.back(operation), x.new_empty(shape), 0
        for row in shared:
            for piece in row[group.rank]:
                to = arrived.narrow(axis, piece.target, piece.size)
                to.copy_(flat[at : at + piece.size * inner].view(to.shape))
                at += piece.size * inner
        return arrived

    return finish


_MOVES: dict[tuple[type, type], tuple[str, Callable[..., Callable[[], Tensor]]]] = {
    (Sliced, Full): ("Allgatherv", _gather),
    (Partial, Sliced): ("Reduce_scatter", _reduce_scatter),
    (Partial, Full): ("Allreduce", _reduce),
    (Full, Sliced): ("-", _keep),
    (Sliced, Partial): ("-", _place),
    (Sliced, Sliced): ("Alltoallv", _redistribute),
}


def collective(source: State, target: State) -> str:
    """The MPI collective of a move, ``-`` where nothing moves.

    Raises:
        HetmpError: the states do not join.
    """
    return _move(source, target)[0]


def _move(source: State, target: State) -> tuple[str, Callable[..., Callable[[], Tensor]]]:
    move = _MOVES.get((type(source), type(target)))
    if move is None:
        raise HetmpError(f"no exchange leads from {source} to {target}")
    return move


@dataclass(frozen=True)
class Overlap:
    """*size* indices that lie at *source* in one rank's share and at *target* in another's."""

    source: int
    target: int
    size: int


def overlaps(source: Layout, sender: int, target: Layout, receiver: int) -> list[Overlap]:
    """The runs of indices that *sender* holds in *source* and *receiver* in *target*."""
    found, at_source = [], 0
    for ours in source.slices(sender):
        at_target = 0
        for theirs in target.slices(receiver):
            start, stop = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
            if start < stop:
                found.append(
                    Overlap(
                        at_source + start - ours.start,
                        at_target + start - theirs.start,
                        stop - start,
                    )
                )
            at_target += theirs.stop - theirs.start
        at_source += ours.stop - ours.start
    return found


def _pack(x: Tensor, axis: int, layout: Layout) -> Tensor:
    """The shares of all ranks, one after the other, each row-major."""
    if _in_order(list(x.shape), axis, layout):
        return x.reshape(-1)
    blocks = [
        torch.cat([_narrow(x, axis, piece) for piece in layout.slices(rank)], dim=axis)
        if len(layout.pieces) > 1
        else _narrow(x, axis, layout.slices(rank)[0])
        for rank in range(layout.ranks)
    ]
    return torch.cat([block.reshape(-1) for block in blocks])


def _unpack(flat: Tensor, shape: list[int], axis: int, layout: Layout) -> Tensor:
    """The inverse of ``_pack``."""
    if _in_order(shape, axis, layout):
        return flat.view(shape)
    blocks: list[list[Tensor]] = [[] for _ in layout.pieces]
    inner, at = _inner(shape, axis), 0
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
    """Whether the shares already lie one after the other in a row-major tensor."""
    return len(layout.pieces) == 1 and math.prod(shape[: axis % len(shape)]) == 1


def _narrow(x: Tensor, axis: int, piece: slice) -> Tensor:
    return x.narrow(axis, piece.start, piece.stop - piece.start)


def _with_axis(x: Tensor, axis: int, size: int) -> list[int]:
    shape = list(x.shape)
    shape[axis] = size
    return shape


def _inner(shape: list[int], axis: int) -> int:
    axis %= len(shape)
    return math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])


@dataclass
class _Wire:
    """A flat tensor as MPI takes it, and the way back to its dtype and device."""

    array: collectives.Array
    carried: torch.dtype
    dtype: torch.dtype
    device: torch.device

    def back(self, operation: Operation) -> Tensor:
        arrived = torch.from_numpy(operation.wait())
        if self.carried in (torch.int16, torch.uint8):
            arrived = arrived.view(self.dtype)
        return arrived.to(device=self.device, dtype=self.dtype)


def _to_wire(flat: Tensor, *, summed: bool) -> _Wire:
    """A host array of *flat*: 16-bit floats are summed as float32, and moved as bits.

    Masks and counts travel too, as bytes and as they are.

    A GPU's tensor is staged through pinned memory; MPI sees it when the copy has ended.
    """
    carried = flat.dtype
    on_wire = flat
    if flat.dtype in _HALF:
        carried = torch.float32 if summed else torch.int16
        on_wire = flat.float() if summed else flat.contiguous().view(torch.int16)
    elif flat.dtype is torch.bool and not summed:
        carried, on_wire = torch.uint8, flat.contiguous().view(torch.uint8)
    elif flat.dtype not in _AS_THEY_ARE:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*_AS_THEY_ARE, *_HALF))
        raise HetmpError(
            f"exchanges move {names} and, where nothing is summed, bool, got {flat.dtype}: convert "
            "it first"
        )
    if flat.is_cuda:
        staged = torch.empty(on_wire.shape, dtype=on_wire.dtype, pin_memory=True)
        staged.copy_(on_wire, non_blocking=True)
        torch.cuda.current_stream(flat.device).synchronize()
        on_wire = staged
    return _Wire(on_wire.contiguous().numpy(), carried, flat.dtype, flat.device)
