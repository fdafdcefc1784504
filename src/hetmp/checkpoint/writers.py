"""Two ways to write one file: rank 0 alone, or all ranks through parallel HDF5."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from hetmp.checkpoint.format import AXIS, DIGEST, DTYPE, META, OWNERS, StoredShape
from hetmp.checkpoint.items import Item
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError

Array = npt.NDArray[np.generic]

LIBRARY = "v110", "v110"
"""The file format of HDF5 1.10: its metadata has checksums, and parallel HDF5 filters."""


class Writer(Protocol):
    """Interface that creates datasets and writes runs of their rows.

    Attributes:
        owners: the ranks that write.
        name: for people.
        collective: whether its methods are.
    """

    owners: Sequence[int]
    name: str
    collective: bool

    def create(self, item: Item) -> None:
        """Create an item's dataset."""

    def write(self, item: Item, rows: tuple[int, int] | None, run: Array | None) -> None:
        """Write rows of a dataset, those that this rank owns; all of it where *rows* is None.

        Args:
            item: the dataset.
            rows: this rank's first row, and the row behind its last; None: all, from rank 0.
            run: the numbers of these rows in C order; None on a rank that writes nothing.
        """

    def finish(self, item: Item, digest: str) -> None:
        """Store a dataset's digest."""

    def link(self, path: str, to: str) -> None:
        """Give a dataset another name."""

    def describe(self, meta: Mapping[str, Any]) -> None:
        """Write the attributes of ``/meta``."""

    def close(self) -> None:
        """Close the complete file."""


class StreamedWriter:
    """Writer on rank 0 of what the others send; it does nothing on them. Not collective.

    Args:
        writes: whether this is rank 0.
    """

    name, collective = "streamed", False

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.owners: Sequence[int] = (0,)
        self._file = None
        if writes:
            self._file = h5py.File(path, "w", libver=LIBRARY, locking=False)

    def create(self, item: Item) -> None:
        if self._file is not None:
            _create(self._file, item)

    def write(self, item: Item, rows: tuple[int, int] | None, run: Array | None) -> None:
        """Write *run* to *rows* of the dataset of *item*; see ``Writer.write``. Not collective."""
        if self._file is None or run is None:
            return
        dataset = self._file[item.path]
        if rows is None:
            if item.shape.numbers:
                dataset[()] = _typed(run, dataset).reshape(item.sizes)
        else:
            first, last = rows
            dataset[first:last] = _typed(run, dataset).reshape(last - first, *item.sizes[1:])

    def finish(self, item: Item, digest: str) -> None:
        if self._file is not None:
            _text(self._file[item.path].attrs, DIGEST, digest)

    def link(self, path: str, to: str) -> None:
        if self._file is not None:
            self._file[path] = self._file[to]

    def describe(self, meta: Mapping[str, Any]) -> None:
        if self._file is not None:
            _describe(self._file, meta)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class ParallelWriter:
    """Writer in which all ranks write at once, each its runs. Every method is collective.

    Raises:
        HetmpError: this h5py has no MPI.
    """

    name, collective = "parallel", True

    def __init__(self, path: Path, group: Group) -> None:
        if not has_parallel_hdf5():
            raise HetmpError(
                "this h5py was built without MPI: use the streamed writer, or build h5py against "
                "a parallel HDF5 (docs/checkpoint-format.md says how)"
            )
        self.owners: Sequence[int] = range(group.size)
        self._root = group.is_root
        self._file = h5py.File(
            path, "w", driver="mpio", comm=group.control, libver=LIBRARY, locking=False
        )

    def create(self, item: Item) -> None:
        _create(self._file, item)

    def write(self, item: Item, rows: tuple[int, int] | None, run: Array | None) -> None:
        """Write *run* to *rows* of the dataset of *item*; see ``Writer.write``. Collective."""
        dataset = self._file[item.path]
        there = dataset.id.get_space()
        if rows is None:
            run = item.local.reshape(item.sizes) if self._root else None
            sizes = item.sizes
            if not item.shape.numbers:
                return
        elif run is not None:
            first, last = rows
            sizes = (last - first, *item.sizes[1:])
            there.select_hyperslab((first, *[0] * (len(sizes) - 1)), sizes)
        if run is None:  # with nothing to write it still takes part
            there.select_none()
            here = h5py.h5s.create_simple((1,))
            here.select_none()
            run = np.empty(1, dtype=dataset.dtype)
        else:
            run = np.ascontiguousarray(_typed(run, dataset)).reshape(sizes)
            here = h5py.h5s.create_simple(sizes) if sizes else h5py.h5s.create(h5py.h5s.SCALAR)
        together = h5py.h5p.create(h5py.h5p.DATASET_XFER)
        together.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
        dataset.id.write(here, there, run, dxpl=together)

    def finish(self, item: Item, digest: str) -> None:
        _text(self._file[item.path].attrs, DIGEST, digest)

    def link(self, path: str, to: str) -> None:
        self._file[path] = self._file[to]

    def describe(self, meta: Mapping[str, Any]) -> None:
        _describe(self._file, meta)

    def close(self) -> None:
        self._file.close()


def has_parallel_hdf5() -> bool:
    """Return whether h5py was built with MPI."""
    return bool(h5py.get_config().mpi)


def _create(file: h5py.File, item: Item) -> None:
    shape: StoredShape = item.shape
    chunked = {"chunks": shape.chunks, "fletcher32": True} if shape.chunks else {}
    dtype: Any = item.local.dtype
    if dtype.kind == "S":
        dtype = h5py.string_dtype("utf-8", dtype.itemsize)
    dataset = file.create_dataset(item.path, item.sizes, dtype, fill_time="never", **chunked)
    _text(dataset.attrs, DTYPE, item.dtype)
    if item.cut is not None:
        dataset.attrs[AXIS] = item.cut.axis
        dataset.attrs[OWNERS] = np.array(
            [
                (rank, piece.start, piece.stop)
                for rank in range(item.cut.layout.ranks)
                for piece in item.cut.layout.slices(rank)
                if piece.start < piece.stop
            ],
            dtype=np.int64,
        ).reshape(-1, 3)


def _typed(run: Array, dataset: h5py.Dataset) -> Array:
    """Return strings in HDF5's type for them, since it does not convert ASCII to UTF-8."""
    return run.astype(dataset.dtype) if run.dtype.kind == "S" else run


def _describe(file: h5py.File, meta: Mapping[str, Any]) -> None:
    attributes = file.create_group(META).attrs
    for name, value in meta.items():
        if isinstance(value, str):
            _text(attributes, name, value)
        else:
            attributes[name] = value


def _text(attributes: Any, name: str, text: str) -> None:
    """Store a string with a fixed length: HDF5 has no checksums for variable lengths."""
    encoded = text.encode()
    kind = h5py.string_dtype("utf-8", max(1, len(encoded)))
    attributes.create(name, np.array(encoded, dtype=kind), dtype=kind)
