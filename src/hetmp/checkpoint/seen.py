"""Which ranks see a file, and the work of reading it shared among them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

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


def verify(group: Group, path: Path, within: Sequence[str] | None = None) -> None:
    """Compare all numbers with their digests, each rank a part of them. Collective.

    Args:
        within: the groups that count; all if None.

    Raises:
        HetmpError: on every rank, naming a damaged dataset.
    """
    with seen(group, path) as checkpoint, group.together():
        if checkpoint.catalog is None:
            return
        number = list(checkpoint.readers).index(group.rank)
        for one in _share(checkpoint, within, number):
            checkpoint.catalog.verify(one)


def _share(checkpoint: Seen, within: Sequence[str] | None, number: int) -> list[Stored]:
    """The datasets that the reader of a *number* looks at: about as many bytes as any other."""
    once = {one.number: one for one in checkpoint.stored.values()}
    wanted = [
        one for one in once.values() if within is None or one.path.partition("/")[0] in within
    ]
    loads, shares = [0] * len(checkpoint.readers), [[] for _ in checkpoint.readers]  # type: ignore[var-annotated]
    for one in sorted(wanted, key=lambda one: (-one.shape.bytes, one.path)):
        least = loads.index(min(loads))
        loads[least] += one.shape.bytes
        shares[least].append(one)
    return shares[number]


def _stored(told: dict[str, object]) -> Stored:
    plain = dict(told)
    plain["sizes"] = tuple(plain["sizes"])  # type: ignore[arg-type]
    plain["owners"] = tuple(tuple(row) for row in plain["owners"])  # type: ignore[attr-defined]
    return Stored(**plain)  # type: ignore[arg-type]
