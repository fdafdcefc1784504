"""Images in files of their own, in a folder for each class."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.checks import image_shape
from hetmp.data.class_folders import find_parts, list_classes
from hetmp.data.dataset import Dataset, Indices, Part
from hetmp.data.given import drawn, refuse_split
from hetmp.data.moments import told_or_measured
from hetmp.data.once import Found
from hetmp.data.options import Options
from hetmp.data.pictures import MODES, decode, header
from hetmp.errors import HetmpError

NAME = "folder"
OPTIONS = (
    "data_path",
    "test_path",
    "shape",
    "test_share",
    "split_seed",
    "mean",
    "std",
)


class Pictures(Part):
    """Images in files, decoded as they are read: uint8 (c, height, width)."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        base: Path,
        files: list[str],
        labels: npt.NDArray[np.int64],
        shape: tuple[int, ...],
    ) -> None:
        """
        Args:
            files: paths within *base*.
            labels: (n,), or (n, *spatial) with one per pixel.
        """
        self.shape, self.label_shape = shape, labels.shape[1:]
        self._base, self._files, self._labels = base, files, labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        images = np.empty((len(chosen), *self.shape), np.uint8)
        for image, index in zip(images, chosen, strict=True):
            image[...] = decode(self._base / self._files[index], self.shape)
        return images, self._labels[chosen]

    def titles(self, chosen: Indices) -> list[str]:
        """The files' paths within the folder of the data."""
        return [self._files[index] for index in chosen]


def survey(options: Options) -> Found:
    """Which files there are, their classes and parts, the shape, and what to normalise with."""
    root = options.path(NAME)
    if not root.is_dir():
        raise HetmpError(f"data_path {root} is a file: give the folder of the folders of images")
    train_base, train_root, test_base, test_root = find_parts(root, options.test_path)
    names, files, labels = list_classes(train_root, train_base)
    if len(names) < 2:
        raise HetmpError(
            f"{train_root} has one folder with images, {names[0]}: there is one for each class, "
            "and it takes two classes to tell apart; data/README.md shows where folders go"
        )
    found: Found = {"names": names}
    if test_root is None:
        train, test, share, seed = drawn(options, labels, lambda k: f"an image of {names[k]}")
        found |= _part("test", train_base, [files[i] for i in test], labels[test])
        files, labels = [files[i] for i in train], labels[train]
        found |= {"split_name": f"folder-by-class-{share!r}", "split_seed": seed}
    else:
        refuse_split(options, test_root)
        found |= _part("test", test_base, *list_classes(test_root, test_base, names)[1:])
        found |= {"split_name": "folder-given", "split_seed": 0}
    found |= _part("train", train_base, files, labels)
    found["shape"] = list(_told_shape(options) or _common_shape(found))
    mean, std = told_or_measured(options, _pictures(found, "train"))
    return found | {"mean": list(mean), "std": list(std)}


def assemble(options: Options, found: Found) -> Dataset:
    """The two parts, none of whose files is opened."""
    return Dataset(
        name=NAME,
        train=_pictures(found, "train"),
        test=_pictures(found, "test"),
        classes=len(found["names"]),
        input_shape=tuple(found["shape"]),
        split_name=found["split_name"],
        split_seed=found["split_seed"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        class_names=tuple(found["names"]),
    )


def _part(name: str, base: Path, files: list[str], labels: npt.NDArray[np.int64]) -> Found:
    return {f"{name}_base": str(base), f"{name}_files": files, f"{name}_labels": labels}


def _pictures(found: dict[str, Any], part: str) -> Pictures:
    base, files, labels = (found[f"{part}_{what}"] for what in ("base", "files", "labels"))
    return Pictures(Path(base), files, labels, tuple(found["shape"]))


def _told_shape(options: Options) -> tuple[int, ...] | None:
    if options.shape is None:
        return None
    shape = image_shape("shape", options.shape)
    if len(shape) != 3 or shape[0] not in MODES:
        raise HetmpError(
            "shape of images in files is (channels, height, width) with 1 (grey), 3 (colours) or "
            f"4 (colours and opacity) channels, such as (3, 64, 64), got {shape}"
        )
    return shape


def _common_shape(found: Found) -> tuple[int, int, int]:
    """The shape of all images, by their headers."""
    first: tuple[Path, tuple[int, int, int]] | None = None
    for part in ("train", "test"):
        for file in found[f"{part}_files"]:
            path = Path(found[f"{part}_base"]) / file
            shape = header(path)
            first = first or (path, shape)
            if shape != first[1]:
                raise HetmpError(
                    f"{path} is {_in_words(shape)}, but {first[0]} is {_in_words(first[1])}: say "
                    "what all images are to be made with shape (--shape 3,64,64: channels, height, "
                    "width)"
                )
    assert first is not None  # every class has an image
    return first[1]


def _in_words(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{'grey' if channels == 1 else 'in colours'}, {height} high and {width} wide"
