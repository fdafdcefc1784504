"""Small real files of every format that hetmp reads images from, written from arrays."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat


def write_picture(path: Path, image: np.ndarray, **how: Any) -> None:
    """One image, uint8 (c, h, w) with 1, 3 or 4 channels, in the format of the path's suffix."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, **how)


def write_folder(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    part: str = "train",
    suffix: str = "png",
) -> None:
    """Images uint8 (n, c, h, w) at ``folder/part/class/0003.png``; *part* may be empty."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        inside = folder / part / class_names[label]
        inside.mkdir(parents=True, exist_ok=True)
        write_picture(inside / f"{number:04}.{suffix}", image)


def write_hdf5(path: Path, datasets: dict[str, np.ndarray], **how: Any) -> None:
    """Arrays by their names; *how* is what h5py takes: ``chunks``, ``compression``."""
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file.create_dataset(name, data=array, **how)


def write_scene(
    folder: Path,
    cube: np.ndarray,
    truth: np.ndarray,
    name: str = "field",
    version: str = "5",
) -> None:
    """A scene (h, w, bands) and its ground truth (h, w), 0 where nobody knows, as MATLAB files."""
    folder.mkdir(parents=True, exist_ok=True)
    for called, array in ((name, cube), (f"{name}_gt", truth)):
        path = folder / f"{called.capitalize()}.mat"
        if version == "5":
            savemat(path, {called: array}, do_compression=True)
        else:  # 7.3: HDF5, with the axes from the last to the first
            with h5py.File(path, "w", userblock_size=512) as file:
                file.create_dataset(called, data=array.T, chunks=True, compression="gzip")
