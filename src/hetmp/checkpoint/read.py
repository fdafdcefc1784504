"""Reads tensors of a checkpoint into slices, whatever the ranks that wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.checkpoint.catalog import BLOCK_BYTES, Stored, under
from hetmp.checkpoint.items import as_stored, dtype_name, from_stored
from hetmp.checkpoint.moving import distribute, own_run, rounds
from hetmp.checkpoint.native import as_value, nested
from hetmp.checkpoint.regions import Cut
from hetmp.checkpoint.seen import Seen
from hetmp.comm import Group
from hetmp.errors import HetmpError
from hetmp.state import Sliced, State

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Target:
    """A tensor that takes its numbers from a dataset.

    Attributes:
        path: of the dataset.
        sizes: of the whole tensor.
        state: how it lies over the ranks.
        tensor: this rank's share, written in place.
    """

    path: str
    sizes: tuple[int, ...]
    state: State
    tensor: Tensor


def check_targets(checkpoint: Seen, targets: Sequence[Target]) -> None:
    """Refuse a checkpoint that does not fit.

    Raises:
        HetmpError: naming what is missing, or has another shape or dtype.
    """
    missing = [target.path for target in targets if target.path not in checkpoint.stored]
    if missing:
        raise HetmpError(
            f"the checkpoint has no {_some(missing)}: it is of another model, or of an older one"
        )
    for target in targets:
        stored = checkpoint.stored[target.path]
        if stored.sizes != target.sizes:
            raise HetmpError(
                f"/{target.path} is {_shown(stored.sizes)} in the checkpoint and "
                f"{_shown(target.sizes)} in the model: build the model as it was when saved"
            )
        wanted = dtype_name(target.tensor.dtype)
        if stored.dtype != wanted:
            raise HetmpError(
                f"/{target.path} is {stored.dtype} in the checkpoint and {wanted} in the model: "
                f"convert the model with .to(torch.{stored.dtype}) before it is sliced"
            )


def read_into(group: Group, checkpoint: Seen, target: Target) -> None:
    """Fill a target's tensor. Collective."""
    stored = checkpoint.stored[target.path]
    if isinstance(target.state, Sliced):
        local = as_stored(target.tensor).copy()
        _read_slices(group, checkpoint, stored, target, local)
    else:
        local = read_whole(group, checkpoint, stored)
    with torch.no_grad():
        target.tensor.copy_(from_stored(local, stored.dtype))


def read_whole(group: Group, checkpoint: Seen, stored: Stored) -> Array:
    """A dataset on every rank; rank 0 reads it. Collective."""
    found: Array = np.empty(0)
    with group.together():
        if group.is_root and checkpoint.catalog is not None:
            found = checkpoint.catalog.read(stored)
    kind = group.broadcast_text(found.dtype.str)
    if not group.is_root:
        found = np.empty(stored.sizes, dtype=np.dtype(kind))
    if found.size:
        group.broadcast(found.reshape(-1).view(np.uint8))
    return found


def read_values(group: Group, checkpoint: Seen, within: str) -> dict[str, Any]:
    """The numbers, strings and arrays under a group, as nested dicts. Collective."""
    return nested(
        {
            path: as_value(read_whole(group, checkpoint, one), one.dtype)
            for path, one in under(checkpoint.stored, within).items()
        }
    )


def _read_slices(
    group: Group, checkpoint: Seen, stored: Stored, target: Target, local: Array
) -> None:
    assert isinstance(target.state, Sliced)
    cut = Cut(target.sizes, target.state.axis, target.state.layout)
    shape = stored.shape
    for runs in rounds(list(shape.blocks(BLOCK_BYTES)), checkpoint.readers):
        own = own_run(group, runs)
        numbers: Array | None = None
        with group.together():
            if own is not None and checkpoint.catalog is not None:
                block = checkpoint.catalog.block(stored, own.first, own.last)
                numbers = np.ascontiguousarray(block).reshape(-1)
        distribute(group, cut, local, runs, shape.row, numbers)


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(f"/{path}" for path in paths[:3])
    return shown + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _shown(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "a single number"
