"""Images stored as records of one length in files, read one by one."""

import os
import weakref
from collections.abc import Sequence
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path
from hetmp.data.dataset import Indices, Part

PIECE = 2**20
"""Bytes read at a time where the length that a file claims cannot be trusted."""


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


class RecordFile(NamedTuple):
    """A file of images: *images* records of *length* bytes, from byte *start* on."""

    path: str
    size: int
    """Size of the whole file in bytes, on rank 0."""
    start: int
    length: int
    skip: int
    """Bytes at the head of a record that are not pixels."""
    images: int


class Records(Part):
    """Images of bytes, read from files as they are needed; their labels are in memory.

    Read, not mapped into memory: a mapped file that is cut while in use would end the process
    with a signal, instead of an error that says which file it was.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        files: Sequence[RecordFile],
        shape: tuple[int, ...],
        labels: npt.NDArray[np.int64],
    ) -> None:
        """Open the *files*.

        Args:
            shape: of an image: channels, then the spatial sides; a pixel is one byte.
            labels: (n,), of the records of all files in order.

        Raises:
            HetmpError: a file cannot be opened here, or is not as long as on rank 0.
        """
        assert all(file.length - file.skip == prod(shape) for file in files)
        assert sum(file.images for file in files) == len(labels)
        self.shape = shape
        self._files = tuple(files)
        self._labels = labels
        self._ends = np.cumsum([file.images for file in files])
        self._opened = []
        for file in files:
            try:
                opened = os.open(file.path, os.O_RDONLY)
            except OSError as error:
                raise unreadable(file.path, error) from error
            weakref.finalize(self, os.close, opened)
            self._opened.append(opened)
            if (size := os.fstat(opened).st_size) != file.size:
                raise HetmpError(
                    f"{file.path} has {size} bytes here, {file.size} on rank 0: put the same file "
                    "on every machine, or on a file system that they share"
                )

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        labels = self._labels[chosen]
        pixels = np.empty((len(chosen), prod(self.shape)), np.uint8)
        which = np.searchsorted(self._ends, chosen, side="right")
        for row, (number, index) in enumerate(zip(which.tolist(), chosen.tolist(), strict=True)):
            file = self._files[number]
            within = index - (int(self._ends[number]) - file.images)
            pixels[row] = self._pixels(number, file, within)
        return pixels.reshape(-1, *self.shape), labels

    def _pixels(self, number: int, file: RecordFile, within: int) -> npt.NDArray[np.uint8]:
        """Read the pixels of record *within* of a file; thread-safe, as the offset is given."""
        wanted = file.length - file.skip
        try:
            offset = file.start + within * file.length + file.skip
            read = os.pread(self._opened[number], wanted, offset)
        except OSError as error:
            raise unreadable(file.path, error) from error
        if len(read) < wanted:
            raise HetmpError(
                f"{file.path} ends within image {within}, but was whole when the run began: do not "
                "change it while it is in use"
            )
        return np.frombuffer(read, np.uint8)


def unreadable(path: str | Path, error: OSError) -> HetmpError:
    """Return the error for a file that cannot be read."""
    return HetmpError(f"{path} cannot be read: {error.strerror or error}{near_path(path)}")


def open_file(path: Path) -> BinaryIO:
    """Open the file for reading.

    Raises:
        HetmpError: it does not exist, is not a regular file, or may not be read.
    """
    try:
        # A pipe would keep us waiting for someone to write to it.
        if not S_ISREG(path.stat().st_mode):
            raise HetmpError(f"{path} is {'a folder, not' if path.is_dir() else 'not'} a file")
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error


def read_file(path: Path) -> bytes:
    """Return all bytes of the file.

    Raises:
        HetmpError: as `open_file`; the file is empty.
    """
    with open_file(path) as file:
        try:
            content = file.read()
        except OSError as error:
            raise unreadable(path, error) from error
    if not content:
        raise HetmpError(f"{path} is empty: get it again")
    return content


def read_up_to(stream: Readable, size: int) -> bytearray:
    """Return the next *size* bytes, or fewer where the stream ends.

    Memory is taken for what is there, not for the *size* that a damaged header asks for.
    """
    content = bytearray()
    while len(content) < size and (piece := stream.read(min(PIECE, size - len(content)))):
        content += piece
    return content
