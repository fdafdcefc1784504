"""Writes a checkpoint so that a complete one exists at every moment.

Beside the final name; then everything is read again and compared; then flushed to the disk; then
renamed; then the folder is flushed.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hetmp.checkpoint.format import leaves, root_digest
from hetmp.checkpoint.items import Item, check_alike
from hetmp.checkpoint.reader import verify
from hetmp.checkpoint.redistribute import gather_rows, own_run, rounds
from hetmp.checkpoint.writers import ParallelWriter, StreamedWriter, Writer, has_parallel_hdf5
from hetmp.cluster import Group, LoneGroup
from hetmp.core.errors import FailedError, HetmpError
from hetmp.core.suggestions import unknown_name
from hetmp.core.text import bytes_text

WriterName = Literal["auto", "streamed", "parallel"]
WRITERS = "auto", "streamed", "parallel"

RUN_BYTES = 1 << 24
"""So much of a tensor is put together at a time."""

SPARE, SPARE_OF_DATASET, SPARE_OF_CHUNK = 1 << 20, 1 << 11, 1 << 6
"""Bytes for what a file holds besides numbers: for itself, a dataset, a chunk or run."""

END = 28
"""Where the head of an HDF5 file (superblock version 3) has the file's length, in 8 bytes."""


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint to be written.

    Attributes:
        items: the datasets.
        links: other names of datasets, by path.
        meta: the attributes of ``/meta``.
    """

    items: Sequence[Item]
    links: Mapping[str, str]
    meta: Mapping[str, Any]

    def copied(self) -> "Contents":
        """Return a copy in memory of its own, which the training does not change."""
        return Contents([item.copied() for item in self.items], self.links, self.meta)


def write(group: Group, path: Path, contents: Contents, writer: WriterName = "auto") -> None:
    """Write a checkpoint to *path*. Collective.

    Args:
        group: the ranks whose slices are written.
        path: of the file, in a folder that rank 0 sees; the folder is made.
        contents: of the same datasets on every rank.
        writer: ``streamed``, ``parallel`` or ``auto``, see ``save``.

    Raises:
        HetmpError: on every rank, if it cannot be written; what was at *path* stays.
    """
    check_alike(group, contents.items)
    beside = path.with_name(f".{path.name}.part")
    try:
        with _worded(path), group.together():
            if writer not in WRITERS:
                raise unknown_name("writer", writer, WRITERS)
            if group.is_root:
                _check_room(path, contents.items)
        with _worded(path), group.together():
            chosen = _opened(beside, group, writer)
        try:
            with _worded(path):
                with group.together():
                    if group.is_root:
                        _reserve(beside, contents.items)
                _fill(group, chosen, contents)
                with group.together():
                    if group.is_root:
                        _trim(beside)
        finally:
            with contextlib.suppress(Exception):  # nothing new where writing failed before
                chosen.close()
        verify(group, beside)
        with _worded(path), group.together():
            if group.is_root:
                _put_in_place(beside, path)
    finally:
        if group.is_root:
            with contextlib.suppress(OSError):
                beside.unlink()


def write_alone(path: Path, contents: Contents) -> None:
    """Write a checkpoint from one process, without MPI.

    Raises:
        HetmpError: it cannot be written; what was at *path* stays.
    """
    write(LoneGroup(), path, contents, "streamed")


def _put_in_place(beside: Path, path: Path) -> None:
    """Rename a complete file and flush it and its folder to the disk."""
    _flush_to_disk(beside)
    beside.replace(path)
    _flush_to_disk(path.parent)


def _opened(path: Path, group: Group, writer: WriterName) -> Writer:
    if writer == "parallel" or (writer == "auto" and has_parallel_hdf5() and group.size > 1):
        return ParallelWriter(path, group)
    return StreamedWriter(path, writes=group.is_root)


class _Careful:
    """Calls a writer so that an error on one rank leaves no other waiting.

    Where its methods are collective, all ranks agree after each. Where rank 0 alone writes, it
    goes on taking part in what moves, and all agree at the end: that is one message instead of
    three for every dataset.
    """

    def __init__(self, group: Group, writer: Writer) -> None:
        self._group, self._collective = group, writer.collective
        self._error: Exception | None = None

    def call(self, action: Callable[..., None], *args: Any) -> None:
        """Call *action*, which may fail."""
        if self._collective:
            with self._group.together():
                action(*args)
        elif self._error is None:
            try:
                action(*args)
            except Exception as error:
                self._error = error

    def agree(self) -> None:
        """Raise on every rank if any call failed. Collective."""
        with self._group.together():
            if self._error is not None:
                raise self._error


def _fill(group: Group, writer: Writer, contents: Contents) -> None:
    careful = _Careful(group, writer)
    careful.call(writer.describe, {**contents.meta, "writer": writer.name})
    for item in contents.items:
        careful.call(writer.create, item)
        digests = _write_item(group, writer, careful, item)
        careful.call(writer.finish, item, root_digest(item.sizes, item.dtype, digests))
    for name, target in contents.links.items():
        careful.call(writer.link, name, target)
    careful.call(writer.close)
    careful.agree()


def _write_item(group: Group, writer: Writer, careful: _Careful, item: Item) -> list[bytes]:
    """Write an item's numbers; return its chunks' digests on the ranks that need them."""
    shape = item.shape
    if not shape.chunks:
        careful.call(writer.write, item, None, item.local if group.is_root else None)
        return _everyones(group, writer, leaves(shape, item.local) if group.is_root else [])
    blocks = list(shape.blocks(RUN_BYTES))
    owners = writer.owners if item.cut is not None else (0,)
    digests: list[bytes] = []
    for runs in rounds(blocks, owners):
        own = own_run(group, runs)
        numbers: npt.NDArray[np.generic] | None = None
        if item.cut is not None:
            numbers = gather_rows(group, item.cut, item.local, runs, shape.row)
        elif own is not None:
            numbers = item.local[own.first : own.last]
        rows = (own.first, own.last) if own is not None else (0, 0)
        careful.call(writer.write, item, rows, numbers)
        digests += _everyones(group, writer, [] if numbers is None else leaves(shape, numbers))
    return digests


def _everyones(group: Group, writer: Writer, own: list[bytes]) -> list[bytes]:
    """Return the digests of all ranks' runs in order; *own* are this rank's. Collective.

    Where one rank alone writes, the others need not know.
    """
    if len(writer.owners) == 1:
        return own
    gathered = bytes.fromhex("".join(group.gather_texts(b"".join(own).hex())))
    return [gathered[i : i + 32] for i in range(0, len(gathered), 32)]


def _size(items: Sequence[Item]) -> int:
    """Return an upper bound for the bytes that a file of *items* takes."""
    size = SPARE
    for item in items:
        chunks = -(-item.sizes[0] // item.shape.rows) if item.shape.chunks else 1
        runs = item.cut.layout.ranks * len(item.cut.layout.pieces) if item.cut is not None else 0
        size += item.shape.bytes + SPARE_OF_DATASET + SPARE_OF_CHUNK * (chunks + runs)
    return size


def _check_room(path: Path, items: Sequence[Item]) -> None:
    """Refuse a disk without room before anything is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disk, wanted = os.statvfs(path.parent), _size(items)
    free = disk.f_bavail * disk.f_frsize
    if free < wanted:
        raise FailedError(
            f"the checkpoint needs {bytes_text(wanted)}, and {path.parent} has {bytes_text(free)} "
            "free: make room, or save elsewhere"
        )


def _reserve(path: Path, items: Sequence[Item]) -> None:
    """Take the room on the disk now: HDF5 does not survive a disk that is full while it writes."""
    wanted = _size(items)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, wanted)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise FailedError(
                f"there is no room for {wanted / 1e6:.0f} MB: {error.strerror}"
            ) from None


def _trim(path: Path) -> None:
    """Cut off the reserved room that was not needed: the file's head says where it ends."""
    with path.open("r+b") as file:
        head = file.read(END + 8)
        file.truncate(int.from_bytes(head[END : END + 8], "little"))


@contextlib.contextmanager
def _worded(path: Path) -> Iterator[None]:
    """Name the file in errors of writing."""
    try:
        yield
    except HetmpError as error:
        raise type(error)(f"{path} could not be written: {error}") from error


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
