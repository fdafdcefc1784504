"""Read tensors of a checkpoint into slices, for any number of ranks that wrote it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.checkpoint.catalog import BLOCK_BYTES, Catalog, Stored, opened, under
from hetmp.checkpoint.items import as_stored, dtype_name, from_stored
from hetmp.checkpoint.redistribute import own_run, rounds, scatter_rows
from hetmp.checkpoint.regions import Cut
from hetmp.checkpoint.values import as_value, nested
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.state import Sliced, State


@dataclass(frozen=True)
class Seen:
    """A checkpoint as all ranks know it.

    Attributes:
        stored: the datasets, by path, the same on every rank.
        meta: the attributes of ``/meta``.
        catalog: on the ranks that can read the file.
        readers: these ranks; rank 0 is one.
    """

    stored: dict[str, Stored]
    meta: dict[str, object]
    catalog: Catalog | None
    readers: Sequence[int]


@contextmanager
def seen(group: Group, path: Path) -> Iterator[Seen]:
    """Open a checkpoint wherever it can be seen: a folder may be rank 0's alone. Collective.

    Raises:
        HetmpError: on every rank, if rank 0 cannot open it.
    """
    with ExitStack() as stack:
        catalog: Catalog | None = None
        text = ""
        with group.together():
            if group.is_root:
                catalog = stack.enter_context(opened(path))
                stored = [asdict(entry) for entry in catalog.stored.values()]
                text = json.dumps([catalog.meta, stored])
        meta, listed = json.loads(group.broadcast_text(text))
        if not group.is_root:
            try:
                catalog = stack.enter_context(opened(path))
            except HetmpError:
                catalog = None
            if catalog is not None and catalog.meta.get("id") != meta.get("id"):
                catalog = None  # another file of the same name, on another host
        sees = group.allgather(np.array([catalog is not None])).ravel()
        datasets = {entry["path"]: _stored(entry) for entry in listed}
        yield Seen(datasets, meta, catalog, [int(rank) for rank in np.flatnonzero(sees)])


def verify(group: Group, path: Path) -> None:
    """Compare all numbers with their digests, each rank a part of them. Collective.

    Raises:
        HetmpError: on every rank, naming a damaged dataset.
    """
    with seen(group, path) as checkpoint, group.together():
        if checkpoint.catalog is None:
            return
        number = list(checkpoint.readers).index(group.rank)
        for stored in _share(checkpoint, number):
            checkpoint.catalog.verify(stored)


def _share(checkpoint: Seen, number: int) -> list[Stored]:
    """Return the datasets that reader *number* verifies: about as many bytes as any other."""
    once = {stored.number: stored for stored in checkpoint.stored.values()}
    loads = [0] * len(checkpoint.readers)
    own = []
    for stored in sorted(once.values(), key=lambda stored: (-stored.shape.bytes, stored.path)):
        least = loads.index(min(loads))
        loads[least] += stored.shape.bytes
        if least == number:
            own.append(stored)
    return own


def _stored(entry: dict[str, Any]) -> Stored:
    """Rebuild a dataset's entry from JSON, which has lists where there were tuples."""
    owners = tuple(tuple(run) for run in entry["owners"])
    return Stored(**{**entry, "sizes": tuple(entry["sizes"]), "owners": owners})


Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Target:
    """A tensor to be filled from a dataset.

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
            f"the checkpoint has no {_some(missing)}: it was saved from another model, or from "
            "an older version of it"
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
    """Fill a target's tensor with the numbers of its dataset. Collective.

    The dataset's numbers must have been verified, and the target checked by ``check_targets``.

    Args:
        group: the ranks that hold the tensor; those that can, read.
        checkpoint: the open file, as ``seen`` gives it.
        target: the tensor, written in place, and the dataset that fills it.
    """
    stored = checkpoint.stored[target.path]
    if isinstance(target.state, Sliced):
        local = as_stored(target.tensor).copy()
        _read_slices(group, checkpoint, stored, target, local)
    else:
        local = read_whole(group, checkpoint, stored)
    with torch.no_grad():
        target.tensor.copy_(from_stored(local, stored.dtype))


def read_whole(group: Group, checkpoint: Seen, stored: Stored) -> Array:
    """Read a dataset on rank 0 and return it on every rank. Collective.

    Args:
        group: the ranks that get the numbers.
        checkpoint: the open file, as ``seen`` gives it.
        stored: the dataset in it.

    Returns:
        An array of the dataset's sizes, in its stored dtype.

    Raises:
        HetmpError: on every rank, if rank 0 cannot read it.
    """
    numbers: Array = np.empty(0)
    with group.together():
        if group.is_root and checkpoint.catalog is not None:
            numbers = checkpoint.catalog.read(stored)
    kind = group.broadcast_text(numbers.dtype.str)
    if not group.is_root:
        numbers = np.empty(stored.sizes, dtype=np.dtype(kind))
    if numbers.size:
        group.broadcast(numbers.reshape(-1).view(np.uint8))
    return numbers


def read_values(group: Group, checkpoint: Seen, within: str) -> dict[str, Any]:
    """Return the numbers, strings and arrays of a group of the file as nested dicts. Collective.

    Args:
        group: the ranks that get the values; rank 0 reads them.
        checkpoint: the open file, as ``seen`` gives it.
        within: the path of the group in the file, ``training`` say.
    """
    return nested(
        {
            path: as_value(read_whole(group, checkpoint, stored), stored.dtype)
            for path, stored in under(checkpoint.stored, within).items()
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
        scatter_rows(group, cut, local, runs, shape.row, numbers)


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(f"/{path}" for path in paths[:3])
    return shown + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _shown(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "a single number"
