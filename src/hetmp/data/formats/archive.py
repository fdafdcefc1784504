"""Files within a .tar or .tar.gz, read into memory without unpacking them to disk."""

import gzip
import tarfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from hetmp.core.errors import HetmpError
from hetmp.data.records import PIECE, open_file, read_up_to, unreadable

LARGEST = 2**30
"""The most bytes of one file. The largest file of CIFAR has 154 million."""


def read_tar(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Return the contents of the *wanted* files in the archive, by name without folders.

    Everything is read to the end, so that a compressed archive's checksum is compared.

    Raises:
        HetmpError: it is damaged, not such an archive, or a wanted file is over ``LARGEST``.
    """
    contents: dict[str, bytes] = {}
    with open_file(path) as file:
        try:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isreg() and name in wanted:
                        contents[name] = _content(archive, member)
            while stream.read(PIECE):
                pass
        except HetmpError as error:
            raise HetmpError(f"{path}: {error}") from error
        except Exception as error:  # damage makes tarfile and gzip raise nearly anything
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise unreadable(path, error) from error
            raise HetmpError(
                f"{path} is not a .tar or .tar.gz archive, or is damaged ({error}): get it again"
            ) from error
    return contents


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > LARGEST:
        raise HetmpError(f"{member.name} has {member.size} bytes, more than the limit of {LARGEST}")
    stream = archive.extractfile(member)
    assert stream is not None  # a regular file has a content
    content = bytes(read_up_to(stream, member.size))
    if len(content) < member.size:
        raise HetmpError(f"{member.name} ends after {len(content)} of {member.size} bytes")
    return content
