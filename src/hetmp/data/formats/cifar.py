"""The files of CIFAR-10 and CIFAR-100: their places and their contents."""

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import exists, isdir
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.data.arrays import checked_labels
from hetmp.data.formats.archive import read_tar
from hetmp.data.formats.pickles import byte_array, read_pickle
from hetmp.data.records import read_file

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32

Labels = tuple[tuple[str, int], ...]
"""Name and number of classes of each label that an image has; the last is what is learnt."""


@dataclass(frozen=True)
class CifarFormat:
    """The files of one version of a set."""

    folder: str
    """Name of the folder that the archive unpacks to."""
    train: tuple[str, ...]
    test: str
    names: str
    """The file of the classes' names, which may be missing."""
    binary: bool

    @property
    def images(self) -> tuple[str, ...]:
        """The files that there must be."""
        return (*self.train, self.test)

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are looked for."""
        return (*self.images, self.names)


@dataclass(frozen=True)
class Source:
    """A file in a folder, or its content where it was in an archive."""

    where: str
    path: Path | None
    unpacked: bytes = b""

    def read(self) -> bytes:
        """Return the content, which is not empty.

        Raises:
            HetmpError: it cannot be read, or is empty.
        """
        if self.path is not None:
            return read_file(self.path)
        if not self.unpacked:
            raise HetmpError(f"{self.where} is empty: get it again")
        return self.unpacked


def locate(
    name: str, path: Path, layouts: tuple[CifarFormat, ...]
) -> tuple[CifarFormat, dict[str, Source]]:
    """Find the first of the *layouts* of data set *name* in *path*, and its files by name.

    Args:
        path: the folder of the files, one that it is in, or an archive of it.

    Raises:
        HetmpError: none exists, a file of images is missing, or the archive is damaged.
    """
    for layout, where, files in _versions(path, layouts):
        if any(image in files for image in layout.images):
            missing = [image for image in layout.images if image not in files]
            if missing:
                raise HetmpError(f"{where} has no {', '.join(missing)}: get the data set again")
            return layout, files
    folders = " or ".join(layout.folder for layout in layouts)
    tests = " or ".join(layout.test for layout in layouts)
    raise HetmpError(
        f"{path} has none of the files of data set {name!r}, such as {tests}: give the folder "
        f"{folders}, the one that it is in, or the archive"
    )


def _versions(
    path: Path, layouts: tuple[CifarFormat, ...]
) -> list[tuple[CifarFormat, Path, dict[str, Source]]]:
    """List, for each version and possible place, those of its files that exist."""
    if not isdir(path):
        content = read_tar(path, {file for layout in layouts for file in layout.files})
        inside = {file: Source(f"{file} in {path}", None, content[file]) for file in content}
        return [(layout, path, inside) for layout in layouts]
    places = [(layout, at) for layout in layouts for at in (path, path / layout.folder)]
    return [
        (
            layout,
            at,
            {f: Source(str(at / f), at / f) for f in layout.files if exists(at / f)},
        )
        for layout, at in places
    ]


def read_records(
    source: Source, labels: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return labels (n,) and records (n, labels + PIXELS) of bytes of a binary file.

    Raises:
        HetmpError: its length is not a whole number of records, or a label is out of range.
    """
    content, length = source.read(), len(labels) + PIXELS
    count, rest = divmod(len(content), length)
    if rest:
        raise HetmpError(
            f"{source.where} has {len(content)} bytes, which is not a whole number of images of "
            f"{length} bytes: get it again, in the binary version"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, length)
    columns = {name: records[:, column] for column, (name, _) in enumerate(labels)}
    return _checked(source.where, columns, labels), records


def read_batch(
    source: Source, labels: Labels
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return labels (n,) and images (n, *SHAPE) of a file of the Python version.

    Raises:
        HetmpError: it is damaged, would run code, or holds something else.
    """
    where, table = source.where, read_pickle(source.where, source.read())
    missing = [key for key in ("data", labels[-1][0]) if key not in table]
    if missing:
        raise HetmpError(
            f"{where} has no {' and no '.join(missing)}: it is not a file of this data set"
        )
    images = byte_array(f"data in {where}", table["data"])
    if images.ndim != 2 or images.shape[1] != PIXELS or not len(images):
        raise HetmpError(f"data in {where} has shape {images.shape}, not (images, {PIXELS})")
    listed = {name: table[name] for name, _ in labels if name in table}
    for name, values in listed.items():
        if not isinstance(values, list) or not all(type(label) is int for label in values):
            raise HetmpError(f"{name} in {where} is not a list of whole numbers: get it again")
        if len(values) != len(images):
            raise HetmpError(
                f"{where} has {len(images)} images with {len(values)} {name}: get it again"
            )
    columns = {name: np.asarray(values) for name, values in listed.items()}
    return _checked(where, columns, labels), images.reshape(-1, *SHAPE)


def _checked(
    where: str, columns: Mapping[str, npt.NDArray[np.generic]], labels: Labels
) -> npt.NDArray[np.int64]:
    """Return the labels to learn; the others are checked too, as they reveal damage."""
    limits = dict(labels)
    checked = [
        checked_labels(f"{name} in {where}", column, limits[name])
        for name, column in columns.items()
    ]
    return checked[-1]


def read_names(source: Source, key: str | None, count: int) -> list[str]:
    """Return the names of the *count* classes: a text's words, or item *key* of a pickle.

    Args:
        source: the file of names, in an archive or a folder.
        key: the item of the pickle; None: *source* is a text.
        count: how many names there must be.

    Raises:
        HetmpError: it is damaged, or names another number of classes.
    """
    content = source.read()
    names: list[str] = []
    if key is None:
        names = content.decode("utf-8", "replace").split()
    else:
        listed = read_pickle(source.where, content).get(key)
        if isinstance(listed, list) and all(isinstance(name, bytes | str) for name in listed):
            names = [n if isinstance(n, str) else n.decode("utf-8", "replace") for n in listed]
    if len(names) != count:
        raise HetmpError(
            f"{source.where} names {len(names)} classes, not {count}: get it again, or remove it"
        )
    return names
