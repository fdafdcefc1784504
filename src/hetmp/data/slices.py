"""Images that are rows of a dataset in an HDF5 file."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.data.axes import Channels, channels_first
from hetmp.data.dataset import Indices, Part
from hetmp.data.h5file import H5File
from hetmp.data.labels import checked_labels
from hetmp.errors import HetmpError


class Slices(Part):
    """Rows of a dataset of images: read as they are needed, and the others not."""

    def __init__(
        self, file: H5File, found: dict[str, Any], part: str, label_shape: tuple[int, ...]
    ) -> None:
        """*found*: what the survey says of *part*."""
        self.shape = tuple(found["shape"])
        self.dtype = np.dtype(found["dtype"])
        self.label_shape = label_shape
        self._file, self._classes = file, int(found["classes"])
        self._images_key, self._labels_key = found[f"{part}_keys"]
        self._channels: Channels = found["channels"]
        self._rows: npt.NDArray[np.int64] = found[f"{part}_rows"]
        self._labels: npt.NDArray[np.int64] = found[f"{part}_labels"]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        rows = self._rows[chosen]
        images = channels_first(self._file.rows(self._images_key, rows), self._channels)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite: told below
            images = np.ascontiguousarray(images, dtype=self.dtype)
        if self.dtype != np.uint8:
            whole = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
            if not whole.all():
                raise HetmpError(
                    f"{self._file.path}: image {rows[np.argmin(whole)]} of dataset "
                    f"{self._images_key!r} has a value that is no finite number in float32: mend "
                    "it, or leave the image out"
                )
        return images, self._per_pixel(rows) if self.label_shape else self._labels[chosen]

    def titles(self, chosen: Indices) -> list[str]:
        """The images' numbers within the dataset."""
        return [str(row) for row in self._rows[chosen]]

    def _per_pixel(self, rows: Indices) -> npt.NDArray[np.int64]:
        labels = self._file.rows(self._labels_key, rows)
        for row, label in zip(rows, labels, strict=True):
            where = f"{self._file.path}: dataset {self._labels_key!r}, image {row}"
            checked_labels(where, label, self._classes)
        return labels.astype(np.int64)
