"""Whole tensors to slices and back, outside autograd: how parameters are handed out and merged.

As raw bytes, so any dtype; point to point, so that no rank holds more than one whole tensor
and one block of it at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from hetmp.cluster import Group
from hetmp.core.partition import Layout
from hetmp.core.state import Sliced, State
from hetmp.exchange.collectives import Array
from hetmp.exchange.packing import whole_size
from hetmp.exchange.plain_tensors import plain_tensors

MAX_BYTES = 2**30
"""The most bytes in one message."""


def share_of(whole: Tensor, state: State, rank: int) -> Tensor:
    """Return *rank*'s share of a *whole* tensor in *state*; a view where it is one slice."""
    if not isinstance(state, Sliced):
        return whole
    parts = [
        whole.narrow(state.axis, piece.start, piece.stop - piece.start)
        for piece in state.layout.slices(rank)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=state.axis)


def share_shape(shape: torch.Size, state: State, rank: int) -> list[int]:
    """Return the shape of *rank*'s share, in *state*, of a whole tensor of *shape*."""
    sizes = list(shape)
    if isinstance(state, Sliced):
        sizes[state.axis] = state.layout.counts[rank]
    return sizes


def distribute(group: Group, whole: Tensor | None, into: Tensor, state: State) -> None:
    """Fill *into* with this rank's share of rank 0's *whole* tensor. Collective over *group*.

    whole: the tensor, read on rank 0 only; elsewhere it may be None.
    into: this rank's share in *state*, of the shape that ``share_shape`` gives.
    """
    with plain_tensors():
        if group.size == 1 or (group.is_root and isinstance(state, Sliced)):
            assert whole is not None
            into.copy_(share_of(whole, state, group.rank))
        if group.size == 1:
            return
        size = whole_size(into.shape, state) * into.element_size()
        with group.record("handing out", "a whole tensor", size=size):
            _hand_out(group, whole, into, state)


def _hand_out(group: Group, whole: Tensor | None, into: Tensor, state: State) -> None:
    if not isinstance(state, Sliced):
        block = whole.detach().cpu().contiguous() if group.is_root and whole is not None else None
        block = torch.empty(into.shape, dtype=into.dtype) if block is None else block
        for part in _parts(block):
            group.control.Bcast(part, root=0)
        into.copy_(block)
    elif group.is_root:
        assert whole is not None
        for rank in range(1, group.size):
            for part in _parts(share_of(whole.detach(), state, rank).cpu().contiguous()):
                group.control.Send(part, dest=rank)
    else:
        block = torch.empty(into.shape, dtype=into.dtype)
        for part in _parts(block):
            group.control.Recv(part, source=0)
        into.copy_(block)


def collect(
    group: Group, local: Tensor, shape: torch.Size, state: State, root: int | None
) -> Tensor | None:
    """Return the whole tensor on the CPU: on every rank, or only on *root*. Collective.

    local: this rank's share in *state*, of the shape that ``share_shape`` gives for the *shape* of
    the whole, over the ranks of *group*. A tensor that every rank holds whole is taken from rank 0,
    or *root*. *root* is None for every rank; other ranks than *root* get None.
    """
    with plain_tensors():
        local = local.detach().cpu().contiguous()
        size = shape.numel() * local.element_size()
        with group.record("collecting", "a whole tensor", size=size):
            return _collect(group, local, shape, state, root)


def _collect(
    group: Group, local: Tensor, shape: torch.Size, state: State, root: int | None
) -> Tensor | None:
    at = 0 if root is None else root
    if not isinstance(state, Sliced):
        whole = local.clone()
    elif group.rank == at:
        whole = torch.empty(shape, dtype=local.dtype)
        for rank in range(group.size):
            block = local
            if rank != at:
                block = torch.empty(share_shape(shape, state, rank), dtype=local.dtype)
                for part in _parts(block):
                    group.control.Recv(part, source=rank)
            _put(whole, block, state.axis, state.layout, rank)
    else:
        for part in _parts(local):
            group.control.Send(part, dest=at)
        whole = torch.empty(shape if root is None else (0,), dtype=local.dtype)
    if root is None and group.size > 1:
        for part in _parts(whole):
            group.control.Bcast(part, root=at)
    return whole if root is None or group.rank == root else None


def _put(whole: Tensor, block: Tensor, axis: int, layout: Layout, rank: int) -> None:
    start = 0
    for piece in layout.slices(rank):
        size = piece.stop - piece.start
        whole.narrow(axis, piece.start, size).copy_(block.narrow(axis, start, size))
        start += size


def _parts(tensor: Tensor) -> Iterator[Array]:
    """Yield the bytes of a contiguous host tensor, in runs that fit one message."""
    flat = tensor.reshape(-1).view(torch.uint8)
    for begin in range(0, flat.numel(), MAX_BYTES):
        yield flat[begin : begin + MAX_BYTES].numpy()
