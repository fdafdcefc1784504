"""IDX files, the format of MNIST: a few bytes that tell the type and sides, then the numbers.

Two zero bytes, a byte for the type (8: unsigned bytes, the one that is read here), a byte for
the number of axes, and the length of each axis as a big-endian 32-bit number. Nothing follows
the numbers.
"""

import gzip
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.data.records import Readable, open_file, read_up_to, unreadable

UBYTE = 8
"""The type's number for unsigned bytes."""

_GZIP = b"\x1f\x8b"


def is_zipped(path: Path) -> bool:
    """Return whether the file is compressed, by its name: it cannot be read in parts."""
    return path.suffix == ".gz"


def header_bytes(axes: int) -> int:
    """Return where the numbers begin in a file of so many *axes*."""
    return 4 + 4 * axes


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Read all numbers of a file, plain or compressed, (n, ...) with so many *axes*.

    Raises:
        HetmpError: it is damaged, empty, or another kind of file.
    """
    with _reading(path) as stream:
        sides = _sides(path, stream, axes)
        # One byte more than there should be: the end is where gzip compares the checksum.
        content = read_up_to(stream, prod(sides) + 1)
        _check_length(path, sides, len(content))
    return np.frombuffer(content, np.uint8).reshape(sides)


def idx_sides(path: Path, axes: int) -> tuple[int, ...]:
    """Return the sides (n, ...) of a plain file, whose length is checked. Reads its header alone.

    Raises:
        HetmpError: as `read_idx`.
    """
    with _reading(path) as stream:
        sides = _sides(path, stream, axes)
        _check_length(path, sides, path.stat().st_size - header_bytes(axes))
    return sides


@contextmanager
def _reading(path: Path) -> Generator[Readable, None, None]:
    """Yield the file's bytes, unpacked; errors of gzip and the system become `HetmpError`."""
    try:
        with open_file(path) as file:
            if is_zipped(path):
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
            else:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise HetmpError(
            f"{path} is damaged, or not compressed by gzip ({error}): get it again, or unpack it "
            "and leave out the .gz"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _sides(path: Path, stream: Readable, axes: int) -> tuple[int, ...]:
    head = read_up_to(stream, header_bytes(axes))
    if len(head) >= 2 and bytes(head[:2]) == _GZIP:
        raise HetmpError(f"{path} is compressed by gzip: add .gz to its name, or unpack it")
    if len(head) >= 4 and (head[0], head[1]) != (0, 0):
        raise HetmpError(
            f"{path} is not an IDX file: it begins with the bytes {head[:4].hex(' ')}, not with "
            f"00 00 08 {axes:02x}"
        )
    if len(head) >= 4 and head[2] != UBYTE:
        raise HetmpError(
            f"{path} has numbers of type 0x{head[2]:02x}: only unsigned bytes (0x08) are read"
        )
    if len(head) >= 4 and head[3] != axes:
        raise HetmpError(
            f"{path} has {head[3]} axes, not {axes}: labels have 1, images 3 (number, height, "
            "width); check that the files are not interchanged"
        )
    if len(head) < header_bytes(axes):
        raise HetmpError(
            f"{path} ends after {len(head)} bytes, within its header of {header_bytes(axes)}: "
            "get it again"
        )
    sides = tuple(int(side) for side in np.frombuffer(head, ">u4", axes, offset=4))
    if 0 in sides:
        raise HetmpError(f"{path} is empty: its sides are {'×'.join(map(str, sides))}")
    return sides


def _check_length(path: Path, sides: tuple[int, ...], length: int) -> None:
    if length != prod(sides):
        follow = "more" if length > prod(sides) else f"only {length}"
        raise HetmpError(
            f"{path} is damaged: its header promises {'×'.join(map(str, sides))} = {prod(sides)} "
            f"bytes, and {follow} follow: get it again"
        )
