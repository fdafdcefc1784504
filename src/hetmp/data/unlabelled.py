"""Pictures without classes, for a trained network to say which they have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.comm import Group
from hetmp.data.dataset import Dataset, Indices, Part
from hetmp.data.once import Found, read_once
from hetmp.data.pictures import MODES, decode, list_pictures
from hetmp.errors import HetmpError

NAME = "pictures"


class Pictures(Part):
    """Files of images, brought to one shape; each has label 0, or each pixel of it."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shape: tuple[int, ...],
        label_shape: tuple[int, ...],
    ) -> None:
        self._folder, self._names = folder, names
        self.shape, self.label_shape = shape, label_shape

    def __len__(self) -> int:
        return len(self._names)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        images = np.empty((len(chosen), *self.shape), dtype=self.dtype)
        for place, index in enumerate(chosen):
            images[place] = decode(self._folder / self._names[index], self.shape)
        return images, np.zeros((len(chosen), *self.label_shape), dtype=np.int64)

    def titles(self, chosen: Indices) -> list[str]:
        return [self._names[index] for index in chosen]


def load_pictures(path: Path, about: Mapping[str, Any], group: Group | None = None) -> Dataset:
    """The pictures in a folder, or one of them, as the images of a trained network. Collective.

    Args:
        path: the folder, whose subfolders are not looked into, or one file.
        about: `Dataset.about` of what the network was trained on.

    Raises:
        HetmpError: on every rank: no picture there, or a network that is not for pictures.
    """
    shape = tuple(about["shape"])

    def survey() -> Found:
        if (
            about["normalised"]
            or about["dtype"] != "uint8"
            or len(shape) != 3
            or shape[0] not in MODES
        ):
            raise HetmpError(
                f"the network was trained on images of shape {shape} and dtype {about['dtype']}, "
                "which no picture becomes: give images of that kind with --data and --data-path"
            )
        if path.is_file():
            return {"folder": str(path.parent), "names": [path.name]}
        names = [file.name for file in list_pictures(path)]
        if not names:
            raise HetmpError(f"{path} has no picture in it")
        return {"folder": str(path), "names": names}

    found = read_once(group, survey)
    part = Pictures(Path(found["folder"]), found["names"], shape, tuple(about["label_shape"]))
    return Dataset(
        name=NAME,
        train=part,
        test=part,
        classes=about["classes"],
        input_shape=shape,
        split_name="pictures",
        split_seed=0,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        class_names=tuple(about["class_names"]),
    )
