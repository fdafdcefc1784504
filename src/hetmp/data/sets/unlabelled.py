"""Pictures without classes, for a trained network to classify."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.data.dataset import Dataset
from hetmp.data.formats.pictures import MODES, list_pictures
from hetmp.data.sets.folder import Pictures
from hetmp.data.survey import Found, read_once

NAME = "pictures"


def load_pictures(path: Path, images: Mapping[str, Any], group: Group | None = None) -> Dataset:
    """Load the pictures of a folder, or one picture, for a trained network. Collective.

    Each has label 0, or each pixel of it.

    Args:
        path: the folder, whose subfolders are not looked into, or one file.
        images: `Dataset.describe_images` of the data set that the network was trained on.
        group: the ranks that load them; None: this process alone.

    Raises:
        HetmpError: on every rank: no picture exists, or the network does not take pictures.
    """
    shape = tuple(images["shape"])

    def survey() -> Found:
        if (
            images["normalised"]
            or images["dtype"] != "uint8"
            or len(shape) != 3
            or shape[0] not in MODES
        ):
            raise HetmpError(
                f"the network was trained on images of shape {shape} and dtype {images['dtype']}, "
                "which picture files cannot provide: give images of that kind with --data and "
                "--data-path"
            )
        if path.is_file():
            return {"folder": str(path.parent), "names": [path.name]}
        names = [file.name for file in list_pictures(path)]
        if not names:
            raise HetmpError(f"{path} contains no picture")
        return {"folder": str(path), "names": names}

    listing = read_once(group, survey)
    names, sizes = listing["names"], (len(listing["names"]), *images["label_shape"])
    part = Pictures(Path(listing["folder"]), names, np.zeros(sizes, np.int64), shape)
    return Dataset(
        name=NAME,
        train=part,
        test=part,
        classes=images["classes"],
        input_shape=shape,
        split_name="pictures",
        split_seed=0,
        mean=tuple(images["mean"]),
        std=tuple(images["std"]),
        class_names=tuple(images["class_names"]),
    )
