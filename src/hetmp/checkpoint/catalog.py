"""Opens a checkpoint and lists its contents, trusting nothing: no torch, no MPI.

A file may be torn, damaged, or made to do harm. Only hard links are followed, only plain numbers
and fixed-length strings are read, and nothing is read that is larger than the file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hetmp.checkpoint.format import (
    AXIS,
    DIGEST,
    DTYPE,
    FORMAT,
    GROUPS,
    META,
    OWNERS,
    VERSION,
    StoredShape,
    leaves,
    root_digest,
    stored_dtype,
)
from hetmp.checkpoint.values import TEXT
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path

DEPTH = 32
"""Groups within groups that a reader follows."""

ATTRIBUTE_BYTES = 1 << 26
"""The most that an attribute may take."""

BLOCK_BYTES = 1 << 24
"""So much of a dataset is read at a time."""

_DAMAGE = OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError


@dataclass(frozen=True)
class Stored:
    """A dataset of a checkpoint.

    Attributes:
        path: in the file, without the first slash.
        sizes: of the whole tensor.
        dtype: torch's name for it, or ``utf-8``.
        itemsize: bytes of a number.
        digest: as the file has it.
        axis: along which it was cut where it was written; None where it was not.
        owners: (rank, first index, index behind the last) of every run of that axis.
        number: of the object; two names of one dataset have the same.
    """

    path: str
    sizes: tuple[int, ...]
    dtype: str
    itemsize: int
    digest: str
    axis: int | None
    owners: tuple[tuple[int, int, int], ...]
    number: int

    @property
    def shape(self) -> StoredShape:
        """How it is divided into chunks."""
        return StoredShape(self.sizes, self.itemsize)


@dataclass(frozen=True)
class Catalog:
    """The contents of a checkpoint.

    Attributes:
        file: open for reading.
        meta: the attributes of ``/meta``.
        stored: the datasets, by path.
    """

    file: h5py.File
    meta: dict[str, Any]
    stored: dict[str, Stored]

    def under(self, group: str) -> dict[str, Stored]:
        """Return the datasets of a group, by the rest of their path."""
        return under(self.stored, group)

    def read(self, stored: Stored) -> npt.NDArray[np.generic]:
        """Read a whole dataset."""
        with damage(self.file.filename, stored.path):
            dataset = self.file[stored.path]
            numbers: npt.NDArray[np.generic] = np.empty(dataset.shape, dtype=dataset.dtype)
            if numbers.size:
                dataset.read_direct(numbers)  # keeps the zeros behind a string
            return numbers

    def block(self, stored: Stored, first: int, last: int) -> npt.NDArray[np.generic]:
        """Read the rows from *first* to before *last* of the dataset *stored*."""
        with damage(self.file.filename, stored.path):
            numbers: npt.NDArray[np.generic] = self.file[stored.path][first:last]
            return numbers

    def verify(self, stored: Stored) -> None:
        """Compare a dataset's numbers with its digest.

        Raises:
            HetmpError: they differ, or cannot be read.
        """
        shape = stored.shape
        whole = [] if shape.chunks else leaves(shape, self.read(stored))
        digests = whole or self._leaves(stored)
        if root_digest(stored.sizes, stored.dtype, digests) != stored.digest:
            raise HetmpError(
                f"{self.file.filename}: /{stored.path} is damaged: its numbers do not match the "
                "digest that was written with them"
            )

    def _leaves(self, stored: Stored) -> list[bytes]:
        """Return the digests of a dataset's chunks as they are stored: no filter is undone."""
        shape = stored.shape
        digests: list[bytes] = []
        with damage(self.file.filename, stored.path):
            dataset = self.file[stored.path].id
            beyond = [0] * (len(stored.sizes) - 1)
            for first in range(0, stored.sizes[0], shape.rows):
                rows = min(shape.rows, stored.sizes[0] - first)
                _, chunk = dataset.read_direct_chunk((first, *beyond))
                size = rows * shape.row * stored.itemsize
                digests += leaves(shape, np.frombuffer(chunk, np.uint8)[:size])
        return digests


def under(stored: Mapping[str, Stored], group: str) -> dict[str, Stored]:
    """Return the datasets of a group, by the rest of their path."""
    above = f"{group}/"
    return {
        path[len(above) :]: dataset for path, dataset in stored.items() if path.startswith(above)
    }


@contextmanager
def opened(path: Path) -> Iterator[Catalog]:
    """Open a checkpoint and check its structure; its numbers are not checked yet.

    Raises:
        HetmpError: no file, not a checkpoint, of a later version, torn or damaged.
    """
    if not path.exists():
        raise HetmpError(f"there is no checkpoint {path}{near_path(path)}")
    try:
        file = h5py.File(path, "r", locking=False)
    except _DAMAGE as error:
        raise HetmpError(
            f"{path} cannot be opened: it is torn, damaged or not an HDF5 file ({_first(error)})"
        ) from None
    with file:
        meta = _meta(file)
        with damage(str(path), "", "the file's structure"):
            stored = dict(_Walk(file, path.stat().st_size).datasets())
        yield Catalog(file, meta, stored)


@contextmanager
def damage(file: str, path: str, what: str = "") -> Iterator[None]:
    """Turn the errors that HDF5 raises for a damaged file into a `HetmpError`.

    Args:
        file: its name, for the message.
        path: of the dataset in it.
        what: names the damaged part instead of *path*.
    """
    try:
        yield
    except HetmpError:
        raise
    except _DAMAGE as error:
        place = what or f"/{path}"
        raise HetmpError(
            f"{file}: {place} cannot be read: it is damaged ({_first(error)})"
        ) from None


def _meta(file: h5py.File) -> dict[str, Any]:
    name = file.filename
    with damage(name, META):
        if META not in set(file) or not isinstance(file.get(META, getlink=True), h5py.HardLink):
            raise HetmpError(f"{name} is not a hetmp checkpoint: it has no /{META}")
        attributes = file[META].attrs
        meta = {key: _attribute(attributes, key, name, META) for key in attributes}
    if meta.get("format") != FORMAT:
        raise HetmpError(
            f"{name} is not a hetmp checkpoint: /{META} says format {meta.get('format')}"
        )
    version = meta.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise HetmpError(
            f"{name} has version {version} of the format; this hetmp reads up to {VERSION}: use "
            "a newer hetmp"
        )
    return meta


def _attribute(attributes: Any, key: str, file: str, path: str) -> Any:
    """Return an attribute as Python's numbers and strings; nothing else is read."""
    attribute = attributes.get_id(key)
    kind = attribute.dtype.kind
    if kind not in "iufbS" or attribute.get_storage_size() > ATTRIBUTE_BYTES:
        raise HetmpError(
            f"{file}: attribute {key} of /{path} is neither a number nor a fixed-length string"
        )
    value = np.asarray(attributes[key])
    if kind == "S":
        value = np.char.decode(value, "utf-8")
    return value.tolist()


class _Walk:
    """Every dataset under the groups of the format, each looked at before anything is read."""

    def __init__(self, file: h5py.File, size: int) -> None:
        self.file, self.size = file, size

    def datasets(self) -> Iterator[tuple[str, Stored]]:
        there = set(self.file)  # names alone: to look one up would follow a link
        for name in GROUPS:
            if name in there:
                yield from self._at(self.file, name, name, ())

    def _at(
        self, group: h5py.Group, name: str, path: str, above: tuple[int, ...]
    ) -> Iterator[tuple[str, Stored]]:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self._refused(path, "is a soft or external link")
        if name in (".", ".."):
            raise self._refused(path, "has a name that is a path")
        child = group[name]
        if isinstance(child, h5py.Dataset):
            yield path, self._stored(child, path)
        elif isinstance(child, h5py.Group):
            number = h5py.h5o.get_info(child.id).addr
            if number in above or len(above) >= DEPTH:
                raise self._refused(path, "contains itself, or is nested too deeply")
            for below in child:
                yield from self._at(child, below, f"{path}/{below}", (*above, number))
        else:
            raise self._refused(path, "is neither a group nor a dataset")

    def _stored(self, dataset: h5py.Dataset, path: str) -> Stored:
        if dataset.shape is None:
            raise self._refused(path, "has no shape")
        creation = dataset.id.get_create_plist()
        filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        if creation.get_external_count() or creation.get_layout() == h5py.h5d.VIRTUAL:
            raise self._refused(path, "stores its numbers in other files")
        if any(code != h5py.h5z.FILTER_FLETCHER32 for code in filters):
            raise self._refused(path, "is stored with a filter")
        size = dataset.size * dataset.dtype.itemsize
        if size > self.size or size > dataset.id.get_storage_size():
            raise self._refused(path, f"claims {size} bytes that the file does not have")
        attributes = {
            key: _attribute(dataset.attrs, key, self.file.filename, path)
            for key in (DIGEST, DTYPE, AXIS, OWNERS)
            if key in dataset.attrs
        }
        if DIGEST not in attributes or DTYPE not in attributes:
            raise self._refused(path, f"has no attribute {DIGEST} or {DTYPE}")
        dtype = attributes[DTYPE]
        fits = dataset.dtype.kind == "S" if dtype == TEXT else dataset.dtype == stored_dtype(dtype)
        if not fits:
            raise self._refused(path, f"is not stored in the type for {dtype}")
        return Stored(
            path,
            dataset.shape,
            dtype,
            dataset.dtype.itemsize,
            attributes[DIGEST],
            attributes.get(AXIS),
            tuple(tuple(row) for row in attributes.get(OWNERS, ())),
            h5py.h5o.get_info(dataset.id).addr,
        )

    def _refused(self, path: str, why: str) -> HetmpError:
        return HetmpError(f"{self.file.filename}: /{path} {why}: this is not a sound checkpoint")


def _first(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip("'\"")
