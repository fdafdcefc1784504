"""Moving a tensor from one state to another: packing, the collective, unpacking.

Not differentiable: ``exchange.py`` pairs each move with its adjoint. On the wire a block is the
rank's share in row-major order, whatever the memory format, so ranks need not agree on one.

Shape legend: ``inner`` is the product of all sizes but the sliced axis's.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hetmp.cluster import Group
from hetmp.cluster.slowdown import Slowdown
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout
from hetmp.core.state import Full, Partial, Sliced, State
from hetmp.exchange import collectives, shared
from hetmp.exchange.packing import (
    check_dtype,
    inner_size,
    narrow,
    pack,
    to_wire,
    unpack,
    whole_size,
    with_axis,
)
from hetmp.exchange.rehearsal import rehearse


@dataclass
class Counter:
    """The cost of the moves of one exchange on this rank, summed since it was made.

    ``bytes`` are those that this rank must receive from others: for a gather the other ranks'
    slices, for a reduce-scatter its own slice from each other rank, for an all-reduce
    ``2 (P - 1) / P`` of the tensor (Patarasuk and Yuan, 2009). ``seconds`` include packing and
    waiting for slower ranks. Where there is a ``log``, each move adds the two intervals in which
    the rank was at it, to begin it and to wait for it, on ``time.perf_counter``'s clock.
    """

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0
    log: list[tuple[float, float]] | None = None

    def spent(self, began: float) -> None:
        """Add the time since *began*, which the rank spent on a move."""
        ended = time.perf_counter()
        self.seconds += ended - began
        if self.log is not None:
            self.log.append((began, ended))


@dataclass(frozen=True)
class Carriage:
    """How a tensor travels, the same on every rank; what arrives does not depend on it.

    Attributes:
        shared: through memory that the ranks share, where they are on one host.
        borrowed: the receiver only reads, so that a gathered tensor may stay in that memory.
        order: the order of the dimensions in memory and on the wire; None for their own. What
            arrives lies in this order.
        rounded: float32 travels as bfloat16, half the bytes; sums are still of float32. Not in
            an Allreduce.
        images: how many the batch has, where a state is cut along the batch.
        taken: the sender has no more use for the tensor, so that an Allreduce may sum in it.
    """

    shared: bool = True
    borrowed: bool = False
    order: tuple[int, ...] | None = None
    rounded: bool = False
    images: int | None = None
    taken: bool = False


USUAL = Carriage()

Finish = Callable[[], Tensor]


class Move:
    """A tensor under way between two states; ``wait()`` returns it."""

    def __init__(self, counter: Counter, began: float, finish: Finish, slowdown: Slowdown) -> None:
        self._counter, self._finish, self._slowdown = counter, finish, slowdown
        counter.calls += 1
        counter.spent(began)
        slowdown.resume()

    def wait(self) -> Tensor:
        """Return the tensor, once it has arrived."""
        self._slowdown.worked()
        began = time.perf_counter()
        arrived = self._finish()
        self._counter.spent(began)
        self._slowdown.resume()
        return arrived


def start(
    group: Group,
    tensor: Tensor,
    source: State,
    target: State,
    counter: Counter,
    how: Carriage = USUAL,
    *,
    wire: str | None = None,
    blocking: bool = False,
    value: str = "",
    direction: str = "forward",
) -> Move:
    """Begin to move *tensor* from *source* to *target*. Collective over *group*.

    *tensor* is this rank's share in *source*: ``(n, c_local, *spatial)`` if sliced on axis 1. It
    is left as it is and must not change until ``wait()``. What the move costs this rank is added
    to *counter*; *how* says how the tensor travels. *wire* is the name of the dtype in which a
    floating-point tensor travels, alike on all ranks; None for its own. It arrives in its own.
    *blocking* uses the blocking collective, which MPI libraries run faster when nothing happens
    in between. *value* and *direction* name the exchange for the reader, alike on all
    ranks.

    Raises:
        HetmpError: no move leads from *source* to *target*; the dtype cannot be exchanged; or
            the tensor's shape does not match *source*.
    """
    group.slowdown.worked()
    began = time.perf_counter()
    name, move = _move(source, target)
    if isinstance(source, Sliced):
        _check_axis(tensor, source.axis, source.layout.counts[group.rank], source, group)
    if isinstance(target, Sliced) and not (
        isinstance(source, Sliced) and source.axis % tensor.dim() == target.axis % tensor.dim()
    ):
        _check_axis(tensor, target.axis, target.layout.total, target, group)
    x = tensor.detach()
    if name == "-":
        return Move(counter, began, move(group, x, source, target), group.slowdown)
    if x.is_complex():  # which MPI libraries do not sum: as pairs of real numbers
        source, target = _from_left(source, x.dim()), _from_left(target, x.dim())
        x, how = torch.view_as_real(x.resolve_conj()), replace(how, order=None)
    dtype, order = x.dtype, how.order or tuple(range(x.dim()))
    x, source, target = x.permute(order), _ordered(source, order), _ordered(target, order)
    if wire is not None and x.is_floating_point():
        x = x.to(getattr(torch, wire))
    if how.rounded and x.dtype is torch.float32 and name != "Allreduce":
        x = x.to(torch.bfloat16)
    size = whole_size(x.shape, source) * x.element_size()
    with group.record(name, value, direction, size) as entry:
        if group.rehearsing:
            arrived = rehearse(group, x, source, target, blocking=blocking)
        else:
            arrived = move(group, x, source, target, counter, how, blocking)
    entry.finished = blocking

    def finish() -> Tensor:
        with entry:
            there = arrived()
        there = there.to(dtype).permute([order.index(i) for i in range(len(order))])
        return torch.view_as_complex(there) if tensor.is_complex() else there

    return Move(counter, began, finish, group.slowdown)


def _from_left(state: State, dims: int) -> State:
    """Return the state of a tensor of *dims* dimensions with its axis counted from the left."""
    return Sliced(state.layout, state.axis % dims) if isinstance(state, Sliced) else state


def _ordered(state: State, order: tuple[int, ...]) -> State:
    """Return the state of a tensor whose dimensions are put into *order*."""
    if not isinstance(state, Sliced):
        return state
    return Sliced(state.layout, order.index(state.axis % len(order)))


def _check_axis(tensor: Tensor, axis: int, size: int, state: Sliced, group: Group) -> None:
    total = state.layout.total
    if not -tensor.dim() <= axis < tensor.dim() or tensor.shape[axis] != size:
        holds = "" if size == total else f" and rank {group.rank} holds {size} indices of it"
        raise HetmpError(
            f"axis {axis} is {total} long in the layout{holds}, got a tensor of shape "
            f"{tuple(tensor.shape)}"
        )


def _gather(
    group: Group,
    x: Tensor,
    source: Sliced,
    target: Full,
    counter: Counter,
    how: Carriage,
    blocking: bool,
) -> Finish:
    layout, axis = source.layout, source.axis
    shape = with_axis(x, axis, layout.total)
    inner = inner_size(shape, axis)
    counts = [count * inner for count in layout.counts]
    check_dtype(x, summed=False)
    counter.bytes += (sum(counts) - x.numel()) * x.element_size()
    if how.shared:
        finish = shared.gather(group, x, shape, axis, layout, borrowed=how.borrowed)
        if finish is not None:
            return finish
    wire = to_wire(x.reshape(-1), summed=False)
    operation = collectives.allgatherv(group, wire.array, counts, blocking=blocking)
    return lambda: unpack(wire.back(operation), shape, axis, layout)


def _reduce_scatter(
    group: Group,
    x: Tensor,
    source: Partial,
    target: Sliced,
    counter: Counter,
    how: Carriage,
    blocking: bool,
) -> Finish:
    layout, axis = target.layout, target.axis
    shape = with_axis(x, axis, layout.counts[group.rank])
    inner = inner_size(shape, axis)
    counts = [count * inner for count in layout.counts]
    check_dtype(x, summed=True)
    as_it_is = (group.size - 1) * counts[group.rank] * x.element_size()
    if how.shared:
        finish = shared.reduce_scatter(group, x, shape, axis, layout)
        if finish is not None:
            counter.bytes += as_it_is
            return finish
    if how.rounded and x.dtype is torch.bfloat16:
        counter.bytes += as_it_is
        return _sum_here(group, x, shape, axis, layout, blocking)
    wire = to_wire(pack(x, axis, layout), summed=True)
    operation = collectives.reduce_scatter(group, wire.array, counts, blocking=blocking)
    counter.bytes += (group.size - 1) * counts[group.rank] * wire.array.itemsize
    return lambda: wire.back(operation).view(shape)


def _sum_here(
    group: Group, x: Tensor, shape: list[int], axis: int, layout: Layout, blocking: bool
) -> Finish:
    """Exchange 16-bit summands as they are and add them on this rank: MPI cannot sum them."""
    counts = [count * inner_size(shape, axis) for count in layout.counts]
    wire = to_wire(pack(x, axis, layout), summed=False)
    table = np.tile(np.array(counts, dtype=np.int64), (group.size, 1))
    operation = collectives.alltoallv(group, wire.array, table, blocking=blocking)

    def finish() -> Tensor:
        summands = wire.back(operation).view(group.size, *shape)
        return summands.sum(0, dtype=torch.float32)

    return finish


def _reduce(
    group: Group,
    x: Tensor,
    source: Partial,
    target: Full,
    counter: Counter,
    how: Carriage,
    blocking: bool,
) -> Finish:
    check_dtype(x, summed=True)
    wire = to_wire(x.reshape(-1), summed=True)
    operation = collectives.allreduce(group, wire.array, blocking=blocking, in_place=how.taken)
    counter.bytes += 2 * (group.size - 1) * wire.array.nbytes // group.size
    return lambda: wire.back(operation).view(x.shape)


def _keep(group: Group, x: Tensor, source: Full, target: Sliced) -> Finish:
    slices = target.layout.slices(group.rank)
    share = torch.cat([narrow(x, target.axis, piece) for piece in slices], dim=target.axis)
    return lambda: share


def _place(group: Group, x: Tensor, source: Sliced, target: Partial) -> Finish:
    axis, at = source.axis, 0
    summand = x.new_zeros(with_axis(x, axis, source.layout.total))
    for piece in source.layout.slices(group.rank):
        size = piece.stop - piece.start
        narrow(summand, axis, piece).copy_(x.narrow(axis, at, size))
        at += size
    return lambda: summand


def _redistribute(
    group: Group,
    x: Tensor,
    source: Sliced,
    target: Sliced,
    counter: Counter,
    how: Carriage,
    blocking: bool,
) -> Finish:
    if source.axis % x.dim() != target.axis % x.dim():
        return _turn(group, x, source, target, counter, blocking)
    if source.layout.total != target.layout.total:
        raise HetmpError(f"{source} and {target} are not slices of the same axis")
    axis = source.axis
    shape = with_axis(x, axis, target.layout.counts[group.rank])
    inner = inner_size(shape, axis)
    ranks = range(group.size)
    shared = [[overlaps(source.layout, s, target.layout, t) for t in ranks] for s in ranks]
    sizes = [[sum(piece.size for piece in pair) for pair in row] for row in shared]
    counts = np.array(sizes, dtype=np.int64) * inner
    outgoing = [
        x.narrow(axis, piece.source, piece.size).reshape(-1)
        for pair in shared[group.rank]
        for piece in pair
    ]
    check_dtype(x, summed=False)
    wire = to_wire(torch.cat(outgoing) if outgoing else x.new_empty(0), summed=False)
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


def _turn(
    group: Group, x: Tensor, source: Sliced, target: Sliced, counter: Counter, blocking: bool
) -> Finish:
    """Exchange slices of one axis for slices of another: of the batch for channels, say."""
    shape = with_axis(x, source.axis, source.layout.total)
    shape[target.axis] = target.layout.counts[group.rank]
    inner = math.prod(
        size for axis, size in enumerate(x.shape) if axis not in (source.axis, target.axis)
    )
    counts = np.outer(source.layout.counts, target.layout.counts) * inner
    outgoing = [
        torch.cat([narrow(x, target.axis, piece) for piece in slices], dim=target.axis).reshape(-1)
        for slices in map(target.layout.slices, range(group.size))
    ]
    check_dtype(x, summed=False)
    wire = to_wire(torch.cat(outgoing), summed=False)
    operation = collectives.alltoallv(group, wire.array, counts, blocking=blocking)
    received = int(counts[:, group.rank].sum() - counts[group.rank, group.rank])
    counter.bytes += received * wire.array.itemsize

    def finish() -> Tensor:
        flat, arrived, at = wire.back(operation), x.new_empty(shape), 0
        for sender, count in enumerate(source.layout.counts):
            block = flat[at : at + count * shape[target.axis] * inner]
            block, start = block.view(with_axis(arrived, source.axis, count)), 0
            at += block.numel()
            for piece in source.layout.slices(sender):
                to = narrow(arrived, source.axis, piece)
                to.copy_(block.narrow(source.axis, start, to.shape[source.axis]))
                start += to.shape[source.axis]
        return arrived

    return finish


_MOVES: dict[tuple[type, type], tuple[str, Callable[..., Finish]]] = {
    (Sliced, Full): ("Allgatherv", _gather),
    (Partial, Sliced): ("Reduce_scatter", _reduce_scatter),
    (Partial, Full): ("Allreduce", _reduce),
    (Full, Sliced): ("-", _keep),
    (Sliced, Partial): ("-", _place),
    (Sliced, Sliced): ("Alltoallv", _redistribute),
}


def collective(source: State, target: State) -> str:
    """Return the name of the MPI collective of a move, ``-`` where nothing moves.

    Raises:
        HetmpError: no move leads from *source* to *target*.
    """
    return _move(source, target)[0]


def _move(source: State, target: State) -> tuple[str, Callable[..., Finish]]:
    move = _MOVES.get((type(source), type(target)))
    if move is None:
        raise HetmpError(f"no exchange leads from {source} to {target}")
    return move


@dataclass(frozen=True)
class Overlap:
    """A run of *size* indices, at *source* in one rank's share and at *target* in another's."""

    source: int
    target: int
    size: int


def overlaps(source: Layout, sender: int, target: Layout, receiver: int) -> list[Overlap]:
    """Return the runs of indices that *sender* holds in *source* and *receiver* in *target*."""
    runs, at_source = [], 0
    for ours in source.slices(sender):
        at_target = 0
        for theirs in target.slices(receiver):
            start, stop = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
            if start < stop:
                runs.append(
                    Overlap(
                        at_source + start - ours.start,
                        at_target + start - theirs.start,
                        stop - start,
                    )
                )
            at_target += theirs.stop - theirs.start
        at_source += ours.stop - ours.start
    return runs
