"""The files of a hyperspectral scene: which arrays are the scene and its ground truth."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import unknown_name
from hetmp.data.arrays import checked_labels
from hetmp.data.formats.matlab import Variable, read, variables
from hetmp.data.formats.pictures import entries


def find_scene(
    path: Path, images_key: str | None, labels_key: str | None
) -> tuple[Variable, Variable]:
    """Find the scene, (h, w, bands), and its ground truth, (h, w); neither is read yet.

    Args:
        path: the folder of their files, or the scene's file; the ground truth may lie beside it.
        images_key, labels_key: their names, where several arrays would do.

    Raises:
        HetmpError: neither or several would do; the sides differ; a damaged file.
    """
    key = labels_key
    folder = path if path.is_dir() else path.parent
    files = [folder / entry.name for entry in entries(folder)]
    files = [file for file in files if file.suffix.lower() == ".mat"]
    if path.is_dir() and not files:
        raise HetmpError(f"{path} has no file *.mat: put the scene and its ground truth there")
    listed = _arrays(files if path.is_dir() else [path])
    image = _image(path, listed, images_key)
    sides = image.shape[:2]

    def truths() -> list[Variable]:
        return [
            variable
            for variable in listed
            if (variable.shape == sides if key is None else variable.name == key)
        ]

    if not truths() and not path.is_dir():
        # Only the scene's file was given; its ground truth lies beside it.
        listed += _arrays([file for file in files if not file.samefile(path)])
    matches = truths()
    if len(matches) > 1:
        names = "; ".join(map(str, matches))
        raise HetmpError(
            f"{path}: which is the ground truth? Say so with labels_key (--labels-key), or put one "
            f"scene alone into a folder: {names}"
        )
    if matches and matches[0].shape == sides:
        return image, matches[0]
    if key is not None and not matches:
        raise unknown_name(f"array in {path},", key, {variable.name for variable in listed})
    others = matches or [
        variable for variable in listed if len(variable.shape) == 2 and min(variable.shape) > 1
    ]
    raise HetmpError(
        f"{path}: no ground truth for {image}: it has a label for each of {sides[0]} x {sides[1]} "
        f"pixels; there is: {'; '.join(map(str, others)) or 'no array of two axes'}"
    )


def _arrays(files: list[Path]) -> list[Variable]:
    return [variable for file in files for variable in variables(file)]


def _image(path: Path, listed: list[Variable], key: str | None) -> Variable:
    named = [variable for variable in listed if key is None or variable.name == key]
    if not named and key is not None:
        raise unknown_name(f"array in {path},", key, {variable.name for variable in listed})
    scenes = [variable for variable in named if len(variable.shape) == 3 and all(variable.shape)]
    if not scenes:
        raise HetmpError(
            f"{path}: a scene is an array of numbers with three axes, height, width and bands; "
            f"there is: {'; '.join(map(str, named)) or 'no array'}"
        )
    if len(scenes) > 1:
        raise HetmpError(
            f"{path}: which is the scene? Say so with images_key (--images-key): "
            f"{'; '.join(map(str, scenes))}"
        )
    return scenes[0]


def read_truth(truth: Variable) -> npt.NDArray[np.int64]:
    """Read the labels (h, w), 0 for none; MATLAB often stores whole numbers as doubles.

    Raises:
        HetmpError: damaged; a label that is not a whole number, below 0, or above the number
            of pixels.
    """
    labels: npt.NDArray[Any] = read(truth)
    if labels.dtype.kind == "f":
        whole = np.isfinite(labels) & (labels == np.round(labels)) & (np.abs(labels) < 2**31)
        if not whole.all():
            row, column = np.argwhere(~whole)[0]
            raise HetmpError(
                f"{truth}: {labels[row, column]} in row {row}, column {column} is not a class: "
                "labels are whole numbers, 0 for none"
            )
    if labels.dtype.kind == "b":
        labels = labels.astype(np.uint8)
    if labels.max(initial=0) > labels.size:
        raise HetmpError(
            f"{truth}: label {labels.max()} with {labels.size} pixels: is this the ground truth?"
        )
    return checked_labels(str(truth), labels.astype(np.int64))


def read_standardised(image: Variable) -> npt.NDArray[np.float32]:
    """Read the scene (h, w, bands) as float32, each band with mean 0 and deviation 1.

    Raises:
        HetmpError: damaged; a value that is not finite: where.
    """
    cube: npt.NDArray[Any] = read(image)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite: refused below
        result = cube.astype(np.float32)
    finite = np.isfinite(result)
    if not finite.all():
        row, column, band = np.argwhere(~finite)[0]
        raise HetmpError(
            f"{image}: {cube[row, column, band]} in row {row}, column {column}, band {band} is "
            "not a finite number in float32: correct it, or leave out the band"
        )
    for band in range(cube.shape[2]):
        values = cube[:, :, band].astype(np.float64)
        deviation = values.std()
        result[:, :, band] = (values - values.mean()) / (deviation if deviation > 0 else 1.0)
    return result
