"""NumPy's .npz archives, read without pickles and without trusting the sizes they claim.

As ``numpy.load(path, allow_pickle=False)``, but memory is taken for the bytes that a member has,
not for those that its header asks for.
"""

import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.data.records import open_file, read_up_to, unreadable

_SUFFIX = ".npy"


class NpzFile:
    """An open archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        members = (name for name in archive.namelist() if name.endswith(_SUFFIX))
        self.keys = {name.removesuffix(_SUFFIX): name for name in members}
        """The arrays' names, and those of the members that hold them."""

    def read(self, key: str) -> npt.NDArray[np.generic]:
        """Read the array *key* into writable memory.

        Raises:
            HetmpError: it is missing, holds objects, or is damaged.
        """
        where = f"{key} in {self.path}"
        if key not in self.keys:
            raise HetmpError(
                f"{self.path} has no {key}: it has {', '.join(sorted(self.keys)) or 'nothing'}"
            )
        try:
            with self._archive.open(self.keys[key]) as stream:
                version = npy.read_magic(stream)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"version {version} of the format")
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, by_column, dtype = read(stream)
                if dtype.hasobject:
                    raise HetmpError(
                        f"{where} holds Python objects, which are not read: save numbers in an "
                        "array with one type and one shape"
                    )
                if dtype.kind not in "biufc":
                    raise HetmpError(f"{where} is not an array of numbers, but of {dtype}")
                if min(shape, default=0) < 0:
                    raise ValueError(f"shape {shape}")
                size = prod(shape) * dtype.itemsize
                # One byte more: the end is where the checksum is compared.
                content = read_up_to(stream, size + 1)
            if len(content) == size:
                array = np.frombuffer(content, dtype) if size else np.empty(0, dtype)
                return array.reshape(shape, order="F" if by_column else "C")
        except HetmpError:
            raise
        except Exception as error:  # damage makes zipfile and numpy raise nearly anything
            raise HetmpError(f"{where} is damaged ({error}): get it again") from error
        follow = "more" if len(content) > size else f"only {len(content)}"
        raise HetmpError(
            f"{where} is damaged: an array {shape} of {dtype} has {size} bytes, and {follow} "
            "follow: get it again"
        )


@contextmanager
def open_npz(path: Path) -> Generator[NpzFile, None, None]:
    """Open the archive.

    Raises:
        HetmpError: it is missing, damaged, or another kind of file.
    """
    with open_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # as above
            raise HetmpError(
                f"{path} is not a .npz archive, or is damaged ({error}): write it with numpy.savez"
            ) from error
        with archive:
            yield NpzFile(path, archive)
