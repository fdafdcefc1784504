"""The buffer collectives on flat host arrays, started and waited for, split where MPI must.

MPI counts and displacements are 32-bit: a larger message goes in rounds, each of which moves
a bounded run of every rank's block through a buffer of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.cluster import Group
from hetmp.cluster.mpi import mpi

Array = npt.NDArray[Any]

MAX_COUNT = 2**31 - 1
"""The most elements in one MPI call."""


@dataclass
class Operation:
    """Collectives under way: ``wait()`` ends them and returns the received array."""

    received: Array
    requests: list[Any] = field(default_factory=list)
    after: list[Callable[[], None]] = field(default_factory=list)
    buffers: list[Array] = field(default_factory=list)

    def wait(self) -> Array:
        """Wait for every request, then put rounds in their places."""
        for request in self.requests:
            request.Wait()
        for finish in self.after:
            finish()
        self.requests, self.after, self.buffers = [], [], []
        return self.received


def allgatherv(group: Group, send: Array, counts: Sequence[int], *, blocking: bool) -> Operation:
    """Begin to gather every rank's block, in rank order, on every rank. Collective.

    Args:
        group: the ranks.
        send: this rank's block, flat, of ``counts[group.rank]`` elements.
        counts: the elements of each rank's block.
        blocking: whether the call waits for the other ranks; MPI libraries then run faster.

    Returns:
        The operation; it receives an array of ``sum(counts)`` elements in the dtype of *send*.
    """
    operation = Operation(np.empty(sum(counts), dtype=send.dtype))
    call = group.comm.Allgatherv if blocking else group.comm.Iallgatherv
    if sum(counts) <= MAX_COUNT:
        _note(operation, call(send, [operation.received, list(counts)]), send)
        return operation
    starts = _starts(counts)
    for begin, sizes in _rounds(counts, MAX_COUNT // len(counts)):
        part = np.empty(sum(sizes), dtype=send.dtype)
        mine = send[begin : begin + sizes[group.rank]]
        _note(operation, call(mine, [part, sizes]), mine, part)
        operation.after.append(
            partial(_each, operation.received, starts, begin, part, sizes, _place)
        )
    return operation


def reduce_scatter(
    group: Group, send: Array, counts: Sequence[int], *, blocking: bool
) -> Operation:
    """Begin to sum *send* over the ranks and give each rank its block. Collective.

    Args:
        group: the ranks.
        send: this rank's summand, flat, of ``sum(counts)`` elements.
        counts: the elements of each rank's block of the sum.
        blocking: whether the call waits for the other ranks.

    Returns:
        The operation; it receives ``counts[group.rank]`` elements in the dtype of *send*.
    """
    operation = Operation(np.empty(counts[group.rank], dtype=send.dtype))
    call = group.comm.Reduce_scatter if blocking else group.comm.Ireduce_scatter
    if sum(counts) <= MAX_COUNT:
        _note(operation, call(send, operation.received, list(counts)), send)
        return operation
    starts = _starts(counts)
    for begin, sizes in _rounds(counts, MAX_COUNT // len(counts)):
        part = np.empty(sum(sizes), dtype=send.dtype)
        _each(send, starts, begin, part, sizes, _take)
        mine = operation.received[begin : begin + sizes[group.rank]]
        _note(operation, call(part, mine, sizes), part)
    return operation


def allreduce(group: Group, send: Array, *, blocking: bool, in_place: bool = False) -> Operation:
    """Begin to sum *send*, a flat array, over the ranks of *group*, on every rank. Collective.

    The operation receives an array like *send*: with *in_place* it is *send*. With *blocking* the
    call waits for the other ranks.
    """
    operation = Operation(send if in_place else np.empty_like(send))
    call = group.comm.Allreduce if blocking else group.comm.Iallreduce
    for begin in range(0, send.size, MAX_COUNT):
        part = slice(begin, begin + MAX_COUNT)
        summand = mpi().IN_PLACE if in_place else send[part]
        _note(operation, call(summand, operation.received[part]), send)
    return operation


def alltoallv(group: Group, send: Array, counts: Array, *, blocking: bool) -> Operation:
    """Begin to send block r of *send* to rank r, for every rank. Collective.

    Args:
        group: the ranks.
        send: this rank's blocks, flat, in rank order.
        counts: (ranks, ranks), the elements ``counts[s, r]`` that go from rank s to rank r.
        blocking: whether the call waits for the other ranks.

    Returns:
        The operation; it receives the blocks for this rank, flat, in rank order.
    """
    sent, received = counts[group.rank].tolist(), counts[:, group.rank].tolist()
    operation = Operation(np.empty(sum(received), dtype=send.dtype))
    call = group.comm.Alltoallv if blocking else group.comm.Ialltoallv
    if max(counts.sum(axis=0).max(), counts.sum(axis=1).max()) <= MAX_COUNT:
        _note(operation, call([send, sent], [operation.received, received]), send)
        return operation
    step = max(1, MAX_COUNT // group.size)
    for begin in range(0, int(counts.max()), step):
        outgoing, incoming = _sizes(sent, begin, step), _sizes(received, begin, step)
        out, part = np.empty(sum(outgoing), send.dtype), np.empty(sum(incoming), send.dtype)
        _each(send, _starts(sent), begin, out, outgoing, _take)
        _note(operation, call([out, outgoing], [part, incoming]), out, part)
        operation.after.append(
            partial(_each, operation.received, _starts(received), begin, part, incoming, _place)
        )
    return operation


def _note(operation: Operation, request: Any, *buffers: Array) -> None:
    """Remember a nonblocking call's request, and keep its buffers alive until it has ended."""
    if request is not None:
        operation.requests.append(request)
        operation.buffers.extend(buffers)


def _starts(counts: Sequence[int]) -> list[int]:
    return list(accumulate(counts[:-1], initial=0))


def _sizes(counts: Sequence[int], begin: int, step: int) -> list[int]:
    return [max(0, min(step, count - begin)) for count in counts]


def _rounds(counts: Sequence[int], step: int) -> list[tuple[int, list[int]]]:
    step = max(1, step)
    return [(begin, _sizes(counts, begin, step)) for begin in range(0, max(counts), step)]


def _each(
    whole: Array,
    starts: Sequence[int],
    begin: int,
    part: Array,
    sizes: Sequence[int],
    move: Callable[[Array, Array], None],
) -> None:
    """Apply *move* to the run of every rank's block that one round carries."""
    for start, size, at in zip(starts, sizes, _starts(sizes), strict=True):
        move(whole[start + begin : start + begin + size], part[at : at + size])


def _place(whole: Array, part: Array) -> None:
    whole[:] = part


def _take(whole: Array, part: Array) -> None:
    part[:] = whole
