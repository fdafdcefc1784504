"""The datasets to be written: whole tensors, of which each rank brings its share."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.checkpoint.format import StoredShape, stored_dtype
from hetmp.checkpoint.regions import Cut
from hetmp.cluster import AgreedError, Group
from hetmp.core.state import Sliced, State
from hetmp.exchange import plain_tensors


@dataclass(frozen=True)
class Item:
    """A dataset that is to be written.

    Attributes:
        path: in the file, without the first slash.
        sizes: of the whole tensor.
        dtype: its name, see ``format.STORED``; ``utf-8`` for strings.
        cut: how it lies over the ranks; None where rank 0 brings all of it.
        local: what this rank brings, in its stored dtype and in C order.
    """

    path: str
    sizes: tuple[int, ...]
    dtype: str
    cut: Cut | None
    local: npt.NDArray[np.generic]

    @property
    def shape(self) -> StoredShape:
        """How it is divided into chunks."""
        return StoredShape(self.sizes, self.local.dtype.itemsize)

    @property
    def signature(self) -> str:
        """What must be the same on every rank."""
        return f"{self.path} {self.sizes} {self.dtype} {self.local.dtype} {self.cut}"

    def copied(self) -> "Item":
        """Return the item with its numbers in memory of their own."""
        return replace(self, local=self.local.copy())


def tensor_item(path: str, sizes: Sequence[int], state: State, local: Tensor) -> Item:
    """Return the item of a tensor whose share on this rank is *local*. Not collective.

    Args:
        path: in the file, without the first slash.
        sizes: of the whole tensor.
        state: how the tensor lies over the ranks.
        local: of any dtype in ``format.STORED``.

    Raises:
        HetmpError: a dtype that the format has no rule for.
    """
    cut = Cut(tuple(sizes), state.axis, state.layout) if isinstance(state, Sliced) else None
    return Item(path, tuple(sizes), dtype_name(local.dtype), cut, as_stored(local))


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name for a dtype, as a checkpoint has it."""
    return str(dtype).removeprefix("torch.")


def as_stored(tensor: Tensor) -> npt.NDArray[np.generic]:
    """Return a tensor's numbers in C order, as they are stored; copied only where necessary."""
    wanted = stored_dtype(dtype_name(tensor.dtype))
    with plain_tensors():
        tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    array: npt.NDArray[np.generic] = tensor.numpy()
    return array.view(wanted) if array.dtype.itemsize == wanted.itemsize else array.astype(wanted)


def from_stored(array: npt.NDArray[np.generic], dtype: str) -> Tensor:
    """Return the tensor that ``as_stored`` turned into *array*."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def check_alike(group: Group, items: Sequence[Item]) -> None:
    """Refuse ranks that would write different things. Collective.

    Raises:
        AgreedError: naming the first difference.
    """
    mine = "\n".join(item.signature for item in items)
    marks = group.allgather(np.array([zlib.crc32(mine.encode())], dtype=np.int64)).ravel()
    if (marks == marks[0]).all():
        return
    other = int((marks != marks[0]).argmax())
    first, second = (group.broadcast_text(mine, rank).split("\n") for rank in (0, other))
    differing = next(
        ((a, b) for a, b in zip(first, second, strict=False) if a != b),
        (f"{len(first)} datasets", f"{len(second)} datasets"),
    )
    raise AgreedError(
        f"the ranks want to save different things: rank 0 {differing[0]}, rank {other} "
        f"{differing[1]}: call save with the same names and shapes on every rank"
    )
