"""A file of HDF5 that threads read side by side, and its data sets, checked."""

import difflib
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path, unknown_name
from hetmp.data.dataset import Indices

CACHE = 64 * 2**20
"""Bytes of chunks kept per dataset: a chunk holds several images, which are wanted in turn."""

_NAMES = 20  # the most names in a message


class H5File:
    """An HDF5 file that is opened when it is first read, once per process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._begin()
        _FILES.add(self)

    def _begin(self) -> None:
        self._lock, self._file, self._datasets = threading.Lock(), None, dict[str, Any]()

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Yield the h5py file, to one thread at a time."""
        with self._lock:
            if self._file is None:
                self._file = _opened(self.path)
            yield self._file

    def __contains__(self, key: str) -> bool:
        """Return whether anything has this name."""
        with self._open() as file:
            try:
                return key in file
            except (OSError, RuntimeError, ValueError, KeyError):
                return False

    def describe(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return (shape, dtype) of dataset *key*.

        Raises:
            HetmpError: the file cannot be opened; it has no such dataset, or not its numbers.
        """
        with self._open() as file:
            dataset = self._dataset(file, key)
            return tuple(dataset.shape), dataset.dtype

    def rows(self, key: str, chosen: Indices) -> npt.NDArray[np.generic]:
        """Return rows of dataset *key*, (k, ...), in the order *chosen*; any may be repeated.

        Raises:
            HetmpError: the file is damaged there.
        """
        wanted, back = np.unique(chosen, return_inverse=True)
        # One slab for each run of neighbours: quicker than a list of indices, and just as exact.
        cuts = np.flatnonzero(np.diff(wanted) != 1) + 1
        with self._open() as file:
            dataset = self._dataset(file, key)
            rows = np.empty((len(wanted), *dataset.shape[1:]), dataset.dtype)
            done = 0
            for run in np.split(wanted, cuts):
                if not len(run):
                    continue
                begin, end = int(run[0]), int(run[-1]) + 1
                try:
                    rows[done : done + end - begin] = dataset[begin:end]
                except (OSError, RuntimeError, ValueError, KeyError) as error:
                    raise HetmpError(
                        f"{self.path}: rows {begin} to {end - 1} of dataset {key!r} cannot be "
                        f"read: {error}; the file is damaged, or packed by a filter that is not "
                        "installed: copy it anew, or write it with gzip or unpacked"
                    ) from error
                done += end - begin
        return rows if np.array_equal(wanted, chosen) else rows[back.reshape(-1)]

    def _dataset(self, file: Any, key: str) -> Any:
        # Kept, because its chunks in the cache go with it.
        if key not in self._datasets:
            self._datasets[key] = _checked(self.path, file, key)
        return self._datasets[key]


_FILES: weakref.WeakSet[H5File] = weakref.WeakSet()


def _begin_anew() -> None:
    for file in list(_FILES):
        file._begin()


# A process that was forked off may use neither the handle nor the lock of its parent.
os.register_at_fork(after_in_child=_begin_anew)


def _opened(path: Path) -> Any:
    import h5py

    if not path.is_file():
        what = "is not a file" if path.exists() else f"does not exist{near_path(path)}"
        raise HetmpError(f"{path} {what}: give an HDF5 file")
    try:
        # No locks: some file systems of clusters have none, and nobody writes meanwhile.
        return h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise HetmpError(
            f"{path} cannot be read as an HDF5 file: {error}; is it another kind of file, or was "
            "it not copied to its end?"
        ) from error


def _checked(path: Path, file: Any, key: str) -> Any:
    """Return dataset *key* of an open file: an array of numbers stored in this file."""
    import h5py

    item: Any = None
    try:
        if isinstance(file.get(key, getlink=True), h5py.ExternalLink):
            raise _elsewhere(path, key)
        item = file[key]
        if isinstance(item, h5py.Dataset):
            # A link on the way to it may lead elsewhere, too.
            sources = item.virtual_sources() if item.is_virtual else []
            if (
                item.file.filename != file.filename
                or item.external
                or any(source.file_name != "." for source in sources)
            ):
                raise _elsewhere(path, key)
            if item.shape is not None and item.dtype.kind in "biufc":
                return item
    except HetmpError:
        raise
    except KeyError as error:
        raise unknown_name(f"dataset of {path},", key, _datasets(file, key)) from error
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise HetmpError(f"{path}: dataset {key!r} cannot be read: {error}") from error
    if isinstance(item, h5py.Group):
        within = ", ".join(list(item)[:_NAMES]) or "nothing"
        raise HetmpError(
            f"{path}: {key!r} is a group, not a dataset; in it: {within}. Name one of its datasets"
        )
    kind = f"holds {item.dtype}" if isinstance(item, h5py.Dataset) else "is a type"
    raise HetmpError(f"{path}: {key!r} is not a dataset of numbers: it {kind}")


def _elsewhere(path: Path, key: str) -> HetmpError:
    return HetmpError(
        f"{path}: dataset {key!r} is a link to, or has its numbers in, another file: hetmp reads "
        "no file but the given one; copy the numbers into it (h5repack, h5copy)"
    )


def _datasets(file: Any, key: str) -> list[str]:
    """List the names of all datasets, or those most like *key* where there are many."""
    import h5py

    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            names.append(name)

    try:
        file.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError):
        return names  # damaged: name what could be found
    if len(names) <= _NAMES:
        return names
    return difflib.get_close_matches(key, names, n=_NAMES, cutoff=0)
