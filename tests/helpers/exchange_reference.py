"""What an exchange must give and hand back, computed by each rank from every rank's data.

The data are small whole numbers, different on each rank, so that sums are exact in every dtype
and in every order, and results can be compared bit by bit.
"""

import torch
from torch import Tensor

from hetmp.core.partition import Layout, Partition, Piece, apportion
from hetmp.core.state import Full, Partial, Sliced, State


def layouts(ranks: int) -> dict[str, Layout]:
    """Layouts of all kinds over *ranks* ranks."""

    def of(counts, block=1):
        return Piece(Partition(tuple(counts[rank % len(counts)] for rank in range(ranks))), block)

    last = [0] * (ranks - 1) + [5]
    return {
        "even": Layout((of([2]),)),
        "uneven": Layout((of([1, 2, 3, 4, 5]),)),
        "zeros": Layout((of([3, 0, 2, 0, 1]),)),
        "first-zero": Layout((of([0, 1, 4, 2, 1] if ranks > 1 else [3]),)),
        "all-on-last": Layout((of(last),)),
        "prime": Layout.of(apportion(7, [rank + 1 for rank in range(ranks)])),
        "fewer-than-ranks": Layout.of(apportion(2, [1] * ranks), block=3),
        "pieces": Layout((of([2, 1, 0]), of([0, 3]) if ranks > 1 else of([3]), of([1, 0, 2], 4))),
    }


def another(layout: Layout) -> Layout:
    """A layout of the same length that cuts it elsewhere, in two pieces where it can."""
    weights = [8.0 + (rank % 2) * 5 - 2 * rank for rank in range(layout.ranks)]
    if layout.total < 2:
        return Layout.of(apportion(layout.total, weights))
    head = layout.total // 3 + 1
    return Layout(
        (
            Piece(apportion(head, weights)),
            Piece(apportion(layout.total - head, weights[::-1])),
        )
    )


def numbers(shape, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Whole numbers from -4 to 4."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, tuple(shape), generator=generator).to(dtype)


def share(whole: Tensor, state: State, rank: int) -> Tensor:
    """*rank*'s share of a whole tensor."""
    if not isinstance(state, Sliced):
        return whole
    wanted = [i for piece in state.layout.slices(rank) for i in range(piece.start, piece.stop)]
    return whole.index_select(state.axis, torch.tensor(wanted, dtype=torch.int64))


def put_together(shares: list[Tensor], state: Sliced, shape) -> Tensor:
    """The whole tensor of every rank's share."""
    whole = torch.full(tuple(shape), 99.0, dtype=shares[0].dtype)
    for rank, part in enumerate(shares):
        at = [i for piece in state.layout.slices(rank) for i in range(piece.start, piece.stop)]
        whole.index_copy_(state.axis, torch.tensor(at, dtype=torch.int64), part)
    return whole


def held(state: State, shape, rank: int, seed: int, dtype=torch.float64) -> Tensor:
    """Numbers of *rank*'s own in the shape that it holds of a whole of *shape* in *state*."""
    return share(numbers(shape, seed + 1000 * rank, dtype), state, rank)


def total(tensors: list[Tensor]) -> Tensor:
    """The sum over the ranks."""
    return torch.stack(tensors).sum(dim=0)


def moved(values: list[Tensor], source: State, target: State, shape, rank: int) -> Tensor:
    """What *rank* holds in *target* when every rank holds its one of *values* in *source*."""
    if isinstance(source, Full):
        return share(values[rank], target, rank)
    if isinstance(source, Partial):
        return share(total(values), target, rank)
    return share(put_together(values, source, shape), target, rank)


def moved_back(gradients: list[Tensor], source: State, target: State, shape, rank: int) -> Tensor:
    """The gradient that *rank* gets where every rank gives its own output gradient."""
    if isinstance(target, Sliced):
        if isinstance(source, Full):  # a summand: this rank's own, zeros elsewhere
            mine = [g if r == rank else torch.zeros_like(g) for r, g in enumerate(gradients)]
            return put_together(mine, target, shape)
        return share(put_together(gradients, target, shape), source, rank)
    return share(total(gradients), source, rank)


def arranged(x: Tensor, how: str) -> Tensor:
    """The same values, otherwise laid out in memory."""
    if how == "channels_last":
        return x.contiguous(
            memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        )
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "strided":
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 77)
        wide[..., ::2] = x
        return wide[..., ::2]
    assert how == "contiguous"
    return x
