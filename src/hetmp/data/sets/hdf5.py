"""Images and labels in an HDF5 file, read slice by slice."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.core.checks import image_shape
from hetmp.core.errors import HetmpError
from hetmp.data.arrays import Channels, channels_first, checked_labels, find_channels
from hetmp.data.dataset import Dataset, Indices, Part
from hetmp.data.formats.hdf5 import H5File
from hetmp.data.options import Options
from hetmp.data.splitting import divided, refuse_split
from hetmp.data.survey import Found, class_count, set_or_measured


class Slices(Part):
    """Rows of a dataset of images, read as they are needed."""

    def __init__(
        self, file: H5File, metadata: dict[str, Any], part: str, label_shape: tuple[int, ...]
    ) -> None:
        """*metadata*: the result of ``survey``; *part*: train or test."""
        self.shape = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["dtype"])
        self.label_shape = label_shape
        self._file, self._classes = file, int(metadata["classes"])
        self._images_key, self._labels_key = metadata[f"{part}_keys"]
        self._channels: Channels = metadata["channels"]
        self._rows: npt.NDArray[np.int64] = metadata[f"{part}_rows"]
        self._labels: npt.NDArray[np.int64] = metadata[f"{part}_labels"]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        rows = self._rows[chosen]
        images = channels_first(self._file.rows(self._images_key, rows), self._channels)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite: refused below
            images = np.ascontiguousarray(images, dtype=self.dtype)
        if self.dtype != np.uint8:
            whole = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
            if not whole.all():
                raise HetmpError(
                    f"{self._file.path}: image {rows[np.argmin(whole)]} of dataset "
                    f"{self._images_key!r} has a value that is not a finite number in float32: "
                    "correct it, or leave out the image"
                )
        return images, self._per_pixel(rows) if self.label_shape else self._labels[chosen]

    def titles(self, chosen: Indices) -> list[str]:
        """Return the images' numbers within the dataset."""
        return [str(row) for row in self._rows[chosen]]

    def _per_pixel(self, rows: Indices) -> npt.NDArray[np.int64]:
        labels = self._file.rows(self._labels_key, rows)
        for row, label in zip(rows, labels, strict=True):
            where = f"{self._file.path}: dataset {self._labels_key!r}, image {row}"
            checked_labels(where, label, self._classes)
        return labels.astype(np.int64)


NAME = "hdf5"
OPTIONS = (
    "data_path",
    "test_path",
    "images_key",
    "labels_key",
    "shape",
    "classes",
    "test_share",
    "split_seed",
    "mean",
    "std",
)


def survey(options: Options) -> Found:
    """Find images and labels and their parts; read the labels if there is one per image."""
    path = options.path(NAME)
    train, test = H5File(path), None if options.test_path is None else H5File(options.test_path)
    keys = [options.images_key or "images", options.labels_key or "labels"]
    metadata: Found = {"train_keys": keys, "test_keys": keys, "split_seed": 0}
    if test is None and f"train/{keys[0]}" in train:
        metadata |= {
            f"{part}_keys": [f"{part}/{key}" for key in keys] for part in ("train", "test")
        }
        test = train
    metadata |= _images(options, train, metadata["train_keys"][0])
    metadata |= _labels(options, train, metadata, "train")
    if test is not None:
        refuse_split(options, test.path if test is not train else f"{path} (group test)")
        of_test = _images(options, test, metadata["test_keys"][0])
        for what in ("shape", "dtype", "channels"):
            if of_test[what] != metadata[what]:
                raise HetmpError(
                    f"{test.path}: {what} of the test images is {of_test[what]}, that of the "
                    f"training images {metadata[what]}: both parts must be alike"
                )
        metadata |= _labels(options, test, metadata | {"count": of_test["count"]}, "test")
        metadata["split_name"] = "hdf5-given"
    else:
        metadata |= _split(options, metadata)
    metadata["classes"] = _classes(options, path, metadata)
    metadata["sizes"] = [file.path.stat().st_size for file in (train, test or train)]
    mean, std = set_or_measured(options, _slices(train, metadata, "train"))
    return metadata | {"mean": list(mean), "std": list(std)}


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the data set, whose files are opened when they are first read."""
    train = H5File(options.path(NAME))
    test = train if options.test_path is None else H5File(Path(options.test_path))
    for file, size in zip((train, test), metadata["sizes"], strict=True):
        here = file.path.stat().st_size if file.path.is_file() else "no"
        if here != size:
            raise HetmpError(
                f"{file.path} has {here} bytes here, {size} on rank 0: put the same file on every "
                "machine, or on a file system that they share"
            )
    return Dataset(
        name=NAME,
        train=_slices(train, metadata, "train"),
        test=_slices(test, metadata, "test"),
        classes=metadata["classes"],
        input_shape=tuple(metadata["shape"]),
        split_name=metadata["split_name"],
        split_seed=metadata["split_seed"],
        mean=tuple(metadata["mean"]),
        std=tuple(metadata["std"]),
    )


def _slices(file: H5File, metadata: Found, part: str) -> Slices:
    return Slices(
        file, metadata, part, tuple(metadata["shape"][1:]) if metadata["per_pixel"] else ()
    )


def _images(options: Options, file: H5File, key: str) -> Found:
    """Return the number of images, their shape and their type."""
    (*counts,), dtype = file.describe(key)
    where = f"{file.path}: dataset {key!r}"
    if not (dtype == np.uint8 or dtype.kind == "f"):
        raise HetmpError(
            f"{where} is of type {dtype}: images are uint8 or floating point; convert them"
        )
    if len(counts) < 3:
        raise HetmpError(
            f"{where} has shape {tuple(counts)}: images are (n, height, width), (n, height, width, "
            "channels) or (n, channels, sides)"
        )
    if counts[0] == 0:
        raise HetmpError(f"{where} has no images: its shape is {tuple(counts)}")
    wanted = None if options.shape is None else image_shape("shape", options.shape)
    channels, shape = find_channels(where, tuple(counts[1:]), wanted)
    stored = "uint8" if dtype == np.uint8 else "float32"
    return {"count": counts[0], "shape": list(shape), "channels": channels, "dtype": stored}


def _labels(options: Options, file: H5File, metadata: Found, part: str) -> Found:
    """Return rows and labels of a part: all of them if there is one per image, else none yet."""
    images_key, key = metadata[f"{part}_keys"]
    shape, dtype = file.describe(key)
    where, count = f"{file.path}: dataset {key!r}", metadata["count"]
    spatial = tuple(metadata["shape"][1:])
    if shape[:1] != (count,) or (shape[1:] not in ((), (1,), spatial)):
        raise HetmpError(
            f"{where} has shape {shape}, dataset {images_key!r} has {count} images of {spatial}: "
            f"give one label for each image, ({count},), or for each pixel, {(count, *spatial)}"
        )
    if dtype.kind not in "iu":
        raise HetmpError(f"{where}: labels are whole numbers, these are of type {dtype}")
    rows = np.arange(count)
    per_pixel = shape[1:] == spatial
    if "per_pixel" in metadata and metadata["per_pixel"] != per_pixel:
        raise HetmpError(f"{where}: one part has a label for each image, the other for each pixel")
    labels = np.empty(0, np.int64)
    if not per_pixel:
        raw = file.rows(key, rows).reshape(-1)
        if options.classes is None and int(raw.max()) > max(count, 1000):
            raise HetmpError(
                f"{where} has label {raw.max()} with {count} images: labels count the classes "
                "from 0 on; number them so, or set classes (--classes)"
            )
        labels = checked_labels(where, raw, options.classes)
    return {f"{part}_rows": rows, f"{part}_labels": labels, "per_pixel": per_pixel}


def _split(options: Options, metadata: Found) -> Found:
    """Set aside a share of the images for testing: of each class, or of all if pixels have them."""
    labels = metadata["train_labels"]
    kinds = None if metadata["per_pixel"] else labels
    train, test, how = divided(options, NAME, kinds, metadata["count"])
    return how | {
        "train_rows": train,
        "test_rows": test,
        "train_labels": labels[train] if len(labels) else labels,
        "test_labels": labels[test] if len(labels) else labels,
    }


def _classes(options: Options, path: Path, metadata: Found) -> int:
    if options.classes is None and metadata["per_pixel"]:
        raise HetmpError(
            f"{path} has a label for every pixel: set classes (--classes) to their number, "
            "because counting them would mean reading all labels"
        )
    classes = class_count(options, metadata["train_labels"], str(path))
    if not metadata["per_pixel"]:
        checked_labels(f"{path}: the test part", metadata["test_labels"], classes)
    return classes
