"""Images in files of their own, in a folder for each class, in one or two parts."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.core.checks import image_shape
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path, unknown_name
from hetmp.data.dataset import Dataset, Indices, Part
from hetmp.data.formats.pictures import MODES, SUFFIXES, decode, entries, header, list_pictures
from hetmp.data.options import Options
from hetmp.data.splitting import drawn, refuse_split
from hetmp.data.survey import Found, set_or_measured

TEST_FOLDERS = ("test", "val", "valid")
"""Names of the test part beside ``train``; the first that is there."""


def find_parts(root: Path, test_path: Path | None) -> tuple[Path, Path, Path, Path | None]:
    """Return (base, classes' folder) of the training and the test part; None: no test part.

    Files are known to people by their paths within the bases.

    Raises:
        HetmpError: the test part is missing.
    """
    train = root / "train"
    # Without folders in it, "train" is a class: pictures of railways.
    nested = train.is_dir() and bool(_folders(train))
    if test_path is not None:
        if not Path(test_path).is_dir():
            raise HetmpError(
                f"test_path {test_path} is not a folder{near_path(test_path)}: give the folder "
                "of the test part's classes"
            )
        return root, train if nested else root, Path(test_path), Path(test_path)
    if not nested:
        return root, root, root, None
    for name in TEST_FOLDERS:
        if (root / name).is_dir():
            return root, train, root, root / name
    raise HetmpError(
        f"{root} has a folder train but none called {', '.join(TEST_FOLDERS)}: add the test "
        "part, say where it is with test_path (--test-path), or give the folder train itself as "
        "data_path to set aside a share of it for testing"
    )


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in entries(root) if entry.is_dir()]


def list_classes(
    root: Path, base: Path, known: list[str] | None = None
) -> tuple[list[str], list[str], npt.NDArray[np.int64]]:
    """Return classes, files (paths within *base*) and labels (n,) of the folders in *root*.

    Args:
        known: the classes; else the folders are, in the order of their names.

    Raises:
        HetmpError: no folders; a folder without images or that is not a *known* class.
    """
    folders = _folders(root)
    if not folders:
        raise HetmpError(
            f"{root} has no folders: put the images of each class in a folder with its name"
        )
    classes = folders if known is None else known
    files: list[str] = []
    labels: list[int] = []
    for name in folders:
        if name not in classes:
            raise unknown_name(f"class in {root},", name, classes)
        pictures = list_pictures(root / name)
        if not pictures:
            raise HetmpError(
                f"{root / name} has no image in it ({', '.join(SUFFIXES)}; subfolders are not "
                "looked into): put the images of this class there, or remove the folder"
            )
        files += [str(picture.relative_to(base)) for picture in pictures]
        labels += [classes.index(name)] * len(pictures)
    return classes, files, np.array(labels, np.int64)


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
        """Return the files' paths within the folder of the data."""
        return [self._files[index] for index in chosen]


def survey(options: Options) -> Found:
    """Find the files, their classes and parts, the shape, and the figures to normalise with."""
    root = options.path(NAME)
    if not root.is_dir():
        raise HetmpError(f"data_path {root} is a file: give the folder of the folders of images")
    train_base, train_root, test_base, test_root = find_parts(root, options.test_path)
    names, files, labels = list_classes(train_root, train_base)
    if len(names) < 2:
        raise HetmpError(
            f"{train_root} has only one folder with images, {names[0]}: give at least two, one "
            "for each class; data/README.md shows where folders go"
        )
    metadata: Found = {"names": names}
    if test_root is None:
        train, test, share, seed = drawn(options, labels, lambda k: f"an image of {names[k]}")
        metadata |= _part("test", train_base, [files[i] for i in test], labels[test])
        files, labels = [files[i] for i in train], labels[train]
        metadata |= {"split_name": f"folder-by-class-{share!r}", "split_seed": seed}
    else:
        refuse_split(options, test_root)
        metadata |= _part("test", test_base, *list_classes(test_root, test_base, names)[1:])
        metadata |= {"split_name": "folder-given", "split_seed": 0}
    metadata |= _part("train", train_base, files, labels)
    metadata["shape"] = list(_checked_shape(options) or _common_shape(metadata))
    mean, std = set_or_measured(options, _pictures(metadata, "train"))
    return metadata | {"mean": list(mean), "std": list(std)}


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the data set without opening any file."""
    return Dataset(
        name=NAME,
        train=_pictures(metadata, "train"),
        test=_pictures(metadata, "test"),
        classes=len(metadata["names"]),
        input_shape=tuple(metadata["shape"]),
        split_name=metadata["split_name"],
        split_seed=metadata["split_seed"],
        mean=tuple(metadata["mean"]),
        std=tuple(metadata["std"]),
        class_names=tuple(metadata["names"]),
    )


def _part(name: str, base: Path, files: list[str], labels: npt.NDArray[np.int64]) -> Found:
    return {f"{name}_base": str(base), f"{name}_files": files, f"{name}_labels": labels}


def _pictures(metadata: dict[str, Any], part: str) -> Pictures:
    base, files, labels = (metadata[f"{part}_{what}"] for what in ("base", "files", "labels"))
    return Pictures(Path(base), files, labels, tuple(metadata["shape"]))


def _checked_shape(options: Options) -> tuple[int, ...] | None:
    if options.shape is None:
        return None
    shape = image_shape("shape", options.shape)
    if len(shape) != 3 or shape[0] not in MODES:
        raise HetmpError(
            "shape of images in files is (channels, height, width) with 1 (grey), 3 (colours) or "
            f"4 (colours and opacity) channels, such as (3, 64, 64), got {shape}"
        )
    return shape


def _common_shape(metadata: Found) -> tuple[int, int, int]:
    """Return the shape of all images, by their headers."""
    first: tuple[Path, tuple[int, int, int]] | None = None
    for part in ("train", "test"):
        for file in metadata[f"{part}_files"]:
            path = Path(metadata[f"{part}_base"]) / file
            shape = header(path)
            first = first or (path, shape)
            if shape != first[1]:
                raise HetmpError(
                    f"{path} is {_in_words(shape)}, but {first[0]} is {_in_words(first[1])}: set "
                    "shape, which all images are then converted to (--shape 3,64,64: channels, "
                    "height, width)"
                )
    assert first is not None  # every class has an image
    return first[1]


def _in_words(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{'grey' if channels == 1 else 'in colours'}, {height} high and {width} wide"
