"""MNIST and sets in its format: the four IDX files of a folder, plain or compressed.

Plain images are read from their file as they are needed. Compressed ones are unpacked once, on
rank 0, and every rank holds them: one cannot begin to read a compressed file in its middle.
"""

from os.path import exists, isdir
from pathlib import Path

import numpy as np

from hetmp.core.errors import HetmpError
from hetmp.data.arrays import checked_labels
from hetmp.data.dataset import Dataset
from hetmp.data.formats.idx import header_bytes, idx_sides, is_zipped, read_idx
from hetmp.data.options import Options
from hetmp.data.records import RecordFile
from hetmp.data.survey import Found, assembled, class_count, with_moments

NAME = "mnist"
OPTIONS = ("data_path", "classes", "mean", "std")
SPLIT_NAME = "mnist-files"
"""The files beginning with ``train`` and with ``t10k``. Another way gets another name."""

STEMS = {"train": "train", "test": "t10k"}
"""Prefixes of the names of a part's files."""


def survey(options: Options) -> Found:
    """Read and check the four files: every header, length and label.

    Raises:
        HetmpError: a file is missing or damaged, or two do not belong together.
    """
    folder = options.path(NAME)
    if not isdir(folder):
        raise HetmpError(
            f"data_path {folder} is a file: for data set {NAME!r} give the folder that has "
            f"{_names('train-images', 3)[0]} and the three others"
        )
    files = {
        part: (_find(folder, f"{stem}-images", 3), _find(folder, f"{stem}-labels", 1))
        for part, stem in STEMS.items()
    }
    sides, metadata = {}, Found()
    for part, (images, labels) in files.items():
        sides[part], pixels = _images(images)
        metadata |= {f"{part}_{how}": value for how, value in pixels.items()}
        metadata[f"{part}_labels"] = read_idx(labels, 1)
        if len(metadata[f"{part}_labels"]) != sides[part][0]:
            raise HetmpError(
                f"{images} has {sides[part][0]} images, {labels} has "
                f"{len(metadata[f'{part}_labels'])} labels: get the two that belong together"
            )
    if sides["test"][1:] != sides["train"][1:]:
        raise HetmpError(
            f"{files['test'][0]} has images of {_text(sides['test'])}, those for training are of "
            f"{_text(sides['train'])}: get the files that belong together"
        )
    classes = class_count(options, metadata["train_labels"], str(files["train"][1]))
    for part, (_, labels) in files.items():
        checked_labels(str(labels), metadata[f"{part}_labels"], classes)
    metadata |= {"classes": classes, "shape": [1, *sides["train"][1:]], "split_name": SPLIT_NAME}
    return with_moments(options, metadata)


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the data set: images (n, 1, height, width) as bytes, 0 (paper) to 255 (ink) in MNIST.

    The number of classes is ``classes``, or as the training labels need.
    """
    return assembled(NAME, metadata)


def _images(path: Path) -> tuple[tuple[int, ...], Found]:
    """Return sides (n, height, width) of a file's images; and the images, or their place."""
    if is_zipped(path):
        pixels = read_idx(path, 3)
        return pixels.shape, {"images": pixels[:, np.newaxis]}
    count, height, width = sides = idx_sides(path, 3)
    start, length = header_bytes(3), height * width
    file = RecordFile(str(path), start + count * length, start, length, 0, count)
    return sides, {"files": [list(file)]}


def _names(stem: str, axes: int) -> list[str]:
    """Return the possible names of a file, the preferred one first."""
    plain = [f"{stem}-idx{axes}-ubyte", f"{stem}.idx{axes}-ubyte"]
    return plain + [f"{name}.gz" for name in plain]


def _find(folder: Path, stem: str, axes: int) -> Path:
    names = _names(stem, axes)
    for name in names:
        if exists(folder / name):
            return folder / name
    raise HetmpError(
        f"{folder} has no {names[0]}, and no {names[0]}.gz: data/README.md says what to put there "
        f"for data set {NAME!r}"
    )


def _text(sides: tuple[int, ...]) -> str:
    return "×".join(map(str, sides[1:]))
