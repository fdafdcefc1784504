"""A data set of files as rank 0 found it: what it tells the others, and what they make of it.

What is found of a data set: ``shape`` of an image, ``classes``, ``split_name`` and, where they
are known, ``split_seed`` and ``class_names``; and of each part, here ``train``, either
``train_images`` (n, *shape), which every rank will hold, or ``train_files``, a list of
`RecordFile`; and ``train_labels``, (n,) or (n, *spatial) of any type of whole numbers.
"""

import numpy as np
import numpy.typing as npt
import torch

from hetmp.checks import whole_number
from hetmp.data.dataset import Dataset, Part, Split
from hetmp.data.moments import told_or_measured
from hetmp.data.once import Found
from hetmp.data.options import Options
from hetmp.data.records import RecordFile, Records
from hetmp.errors import HetmpError

MOST_CLASSES = 2**16
"""As many as labels may ask for by themselves; more are a mistake, unless told."""


def class_count(options: Options, labels: npt.NDArray[np.generic], where: str) -> int:
    """How many classes there are: as many as told, else as the training *labels* ask for.

    Args:
        labels: of any type of whole numbers.
        where: what they are the labels of, for the message.

    Raises:
        HetmpError: they are fewer than 2, or not told and more than ``MOST_CLASSES``.
    """
    if options.classes is not None:
        return whole_number("classes", options.classes, 2)
    most = int(labels.max())
    if most >= MOST_CLASSES:
        raise HetmpError(
            f"{where}: label {most} asks for {most + 1} classes: give each class a number, from 0 "
            "up without gaps, or say with classes how many there are"
        )
    if most < 1:
        raise HetmpError(f"{where}: every label is 0, and it takes two classes to tell apart")
    return most + 1


def with_moments(options: Options, found: Found) -> Found:
    """*found*, with the mean and deviation that its images are normalised with.

    They are found here, on rank 0, so that the others need not read images for them.

    Raises:
        HetmpError: the options give another number of channels; an image cannot be read.
    """
    mean, std = told_or_measured(options, _part(found, "train"))
    return {**found, "mean": list(mean), "std": list(std)}


def assembled(name: str, found: Found) -> Dataset:
    """The data set that `with_moments` told of, on any rank.

    Raises:
        HetmpError: a file that rank 0 has read cannot be opened here.
    """
    return Dataset(
        name=name,
        train=_part(found, "train"),
        test=_part(found, "test"),
        classes=found["classes"],
        input_shape=tuple(found["shape"]),
        split_name=found["split_name"],
        split_seed=found.get("split_seed", 0),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        class_names=tuple(found.get("class_names", ())),
    )


def _part(found: Found, part: str) -> Part:
    labels = found[f"{part}_labels"].astype(np.int64)
    if f"{part}_files" in found:
        files = [RecordFile(*file) for file in found[f"{part}_files"]]
        return Records(files, tuple(found["shape"]), labels)
    return Split(torch.from_numpy(found[f"{part}_images"]), torch.from_numpy(labels))
