"""CIFAR-10 and CIFAR-100: colour images of 32×32, from the files as they are published.

The binary version of an unpacked folder is read image by image, when they are needed. The Python
version and archives are read once, on rank 0, and every rank holds the images.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hetmp.data.dataset import Dataset
from hetmp.data.formats.cifar import (
    SHAPE,
    CifarFormat,
    Labels,
    Source,
    locate,
    read_batch,
    read_names,
    read_records,
)
from hetmp.data.options import Options
from hetmp.data.records import RecordFile
from hetmp.data.survey import Found, assembled, with_moments


@dataclass(frozen=True)
class Cifar:
    """The loader of one of the two sets."""

    OPTIONS: ClassVar[tuple[str, ...]] = ("data_path", "mean", "std")

    NAME: str
    labels: Labels
    names: str
    """Key of the classes' names in the file of the Python version."""
    layouts: tuple[CifarFormat, ...]
    """In the order in which they are looked for."""

    def survey(self, options: Options) -> Found:
        """Read and check the files: lengths, shapes and every label.

        Raises:
            HetmpError: a file is missing or damaged, or not of this set.
        """
        layout, files = locate(self.NAME, options.path(self.NAME), self.layouts)
        classes = self.labels[-1][1]
        metadata: Found = {
            "shape": list(SHAPE),
            "classes": classes,
            "split_name": f"{self.NAME}-files",
        }
        if layout.names in files:
            key = None if layout.binary else self.names
            metadata["class_names"] = read_names(files[layout.names], key, classes)
        for part, names in (("train", layout.train), ("test", (layout.test,))):
            pieces = [self._read(layout, files[name]) for name in names]
            for what in pieces[0]:
                values = [piece[what] for piece in pieces]
                key = f"{part}_{what}"
                metadata[key] = values if what == "files" else np.concatenate(values)
        return with_moments(options, metadata)

    def assemble(self, options: Options, metadata: Found) -> Dataset:
        """Return the data set: images (n, 3, 32, 32) as bytes, red, green and blue."""
        return assembled(self.NAME, metadata)

    def _read(self, layout: CifarFormat, source: Source) -> Found:
        """Return labels of a file, and its images or, if they can be read later, their place."""
        if not layout.binary:
            labels, images = read_batch(source, self.labels)
            return {"labels": labels, "images": images}
        labels, records = read_records(source, self.labels)
        skip = len(self.labels)
        if source.path is None:
            return {"labels": labels, "images": records[:, skip:].reshape(-1, *SHAPE)}
        count, length = records.shape
        file = RecordFile(str(source.path), records.size, 0, length, skip, count)
        return {"labels": labels, "files": list(file)}


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

CIFAR10 = Cifar(
    NAME="cifar10",
    labels=(("labels", 10),),
    names="label_names",
    layouts=(
        CifarFormat(
            "cifar-10-batches-bin",
            tuple(f"{name}.bin" for name in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            binary=True,
        ),
        CifarFormat("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", binary=False),
    ),
)

CIFAR100 = Cifar(
    NAME="cifar100",
    labels=(("coarse_labels", 20), ("fine_labels", 100)),
    names="fine_label_names",
    layouts=(
        CifarFormat(
            "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", binary=True
        ),
        CifarFormat("cifar-100-python", ("train",), "test", "meta", binary=False),
    ),
)
