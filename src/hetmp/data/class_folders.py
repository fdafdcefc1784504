"""Folders of images, one for each class, in one or two parts."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetmp.data.pictures import SUFFIXES, entries, list_pictures
from hetmp.errors import HetmpError, near_path, unknown_name

TEST_FOLDERS = ("test", "val", "valid")
"""Names of the test part beside ``train``; the first that is there."""


def find_parts(root: Path, told: Path | None) -> tuple[Path, Path, Path, Path | None]:
    """(base, classes' folder) of the training part, then of the test part; None: no test part.

    Files are known to people by their paths within the bases.

    Raises:
        HetmpError: there should be a test part, and is none.
    """
    train = root / "train"
    # Without folders in it, "train" is a class: pictures of railways.
    nested = train.is_dir() and bool(_folders(train))
    if told is not None:
        if not Path(told).is_dir():
            raise HetmpError(
                f"test_path {told} is no folder{near_path(told)}: give the folder of the test "
                "part's classes"
            )
        return root, train if nested else root, Path(told), Path(told)
    if not nested:
        return root, root, root, None
    for name in TEST_FOLDERS:
        if (root / name).is_dir():
            return root, train, root, root / name
    raise HetmpError(
        f"{root} has a folder train but none called {', '.join(TEST_FOLDERS)}: add the test part, "
        "say where it is with test_path (--test-path), or give the folder train itself as "
        "data_path to have a share of it for testing"
    )


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in entries(root) if entry.is_dir()]


def list_classes(
    root: Path, base: Path, known: list[str] | None = None
) -> tuple[list[str], list[str], npt.NDArray[np.int64]]:
    """Classes, files (their paths within *base*) and labels (n,) of the folders in *root*.

    Args:
        known: the classes; else the folders are, in the order of their names.

    Raises:
        HetmpError: no folders; one without images, or one that is none of the *known* classes.
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
