"""Which ranks see a file, and the work of reading it shared among them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hetmp.checkpoint.catalog import Catalog, Stored, opened
from hetmp.comm import Group
from hetmp.errors import HetmpError


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
        told = ""
        with group.together():
            if group.is_root:
                catalog = stack.enter_context(opened(path))
                stored = [asdict(one) for one in catalog.stored.values()]
                told = json.dumps([catalog.meta, stored])
        meta, listed = json.loads(group.broadcast_text(told))
        if not group.is_root:
            try:
                catalog = stack.enter_context(opened(path))
            except HetmpError:
                catalog = None
            if catalog is not None and catalog.meta.get("id") != meta.get("id"):
                catalog = None  # another file of the same name, on another host
        sees = group.allgather(np.array([catalog is not None])).ravel()
        found = {one["path"]: _stored(one) for one in listed}
        yield Seen(found, meta, catalog, [int(rank) for rank in np.flatnonzero(sees)])


def verify(group: Group, path: Path) -> None:
    """Compare all numbers with their digests, each rank a part of them. Collective.

    Raises:
        HetmpError: on every rank, naming a damaged dataset.
    """
    with seen(group, path) as checkpoint, group.together():
        if checkpoint.catalog is None:
            return
        number = list(checkpoint.readers).index(group.rank)
        for one in _share(checkpoint, number):
            checkpoint.catalog.verify(one)


def _share(checkpoint: Seen, number: int) -> list[Stored]:
    """The datasets that the reader of a *number* looks at: about as many bytes as any other."""
    once = {one.number: one for one in checkpoint.stored.values()}
    loads = [0] * len(checkpoint.readers)
    own = []
    for one in sorted(once.values(), key=lambda one: (-one.shape.bytes, one.path)):
        least = loads.index(min(loads))
        loads[least] += one.shape.bytes
        if least == number:
            own.append(one)
    return own


def _stored(told: dict[str, Any]) -> Stored:
    """A dataset as JSON tells it: with lists where there were tuples."""
    owners = tuple(tuple(run) for run in told["owners"])
    return Stored(**{**told, "sizes": tuple(told["sizes"]), "owners": owners})
