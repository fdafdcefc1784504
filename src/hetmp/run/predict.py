"""Write the predictions of a trained network to a file: class and probability by image."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt
import torch

from hetmp.checkpoint.origin import Origin
from hetmp.cluster import AgreedError, Group
from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.core.suggestions import unknown_name
from hetmp.data import Dataset, Part, load_pictures
from hetmp.run.build import load_dataset
from hetmp.run.config import TrainConfig
from hetmp.run.load_trained import Trained, run_on_trained
from hetmp.run.own_images import OwnImages
from hetmp.run.precision import wide
from hetmp.slicing import SlicedModel

if TYPE_CHECKING:
    from mpi4py import MPI

PARTS = "test", "train"
SUFFIXES = ".csv", ".h5", ".hdf5"


@dataclass(frozen=True)
class PredictionSummary:
    """The result of a prediction.

    Attributes:
        file: the checkpoint.
        out: the file of the predictions.
        images: number of images.
        accuracy: share of the labels predicted, 0 to 1; None if the images have no labels.
        ranks: number of ranks of the job.
        passed_over: a reason for each newer checkpoint of the folder that cannot be used.
    """

    file: str
    out: str
    images: int
    accuracy: float | None
    ranks: int
    passed_over: tuple[str, ...]


def predict(
    path: Path,
    out: Path,
    settings: Mapping[str, Any],
    comm: "MPI.Intracomm | None" = None,
    *,
    part: str = "test",
    images: Path | None = None,
) -> PredictionSummary:
    """Write the class and probability of each image, the same on any ranks. Collective.

    Args:
        path: a checkpoint, or a run's folder, as for ``evaluate_checkpoint``.
        out: the file to write: ``.csv``, or ``.h5`` for HDF5.
        settings: fields of ``TrainConfig``, as for ``evaluate_checkpoint``.
        comm: the ranks of the job; ``MPI.COMM_WORLD`` if None.
        part: ``test`` or ``train``: the part of the data set to use.
        images: a folder of pictures without classes, or one picture, instead of a data set.

    Raises:
        HetmpError: on every rank at once: bad input, or a file that cannot be used or written.
    """
    group = Group(comm)
    with group.together():
        if part not in PARTS:
            raise unknown_name("part", part, PARTS)
        if out.suffix.lower() not in SUFFIXES:
            raise HetmpError(
                f"cannot tell the format of {out} from its suffix: use {', '.join(SUFFIXES)}"
            )
        if group.is_root:
            _make_room(out)

    def load(config: TrainConfig, origin: Origin, group: Group) -> Dataset:
        """Load the images for the network of *origin*; *config*, *group* are as for ``_images``."""
        dataset = _images(images, config, origin, group)
        if dataset.test.label_shape and out.suffix.lower() == ".csv":
            raise AgreedError(
                "a class per pixel does not fit in a table: write HDF5 (--out predictions.h5)"
            )
        return dataset

    def work(model: SlicedModel, trained: Trained) -> list[float]:
        chosen = getattr(trained.dataset, part)
        predictions = _predictions(model, trained, chosen)
        group = model.hetmp.group
        with group.together():
            if group.is_root:
                _write(out, predictions, trained.dataset, chosen, labelled=images is None)
        return [len(chosen), float((predictions.classes == predictions.labels).mean())]

    trained, (count, accuracy) = run_on_trained(path, settings, comm, work, 2, load)
    return PredictionSummary(
        file=str(trained.file),
        out=str(out),
        images=int(count),
        accuracy=accuracy if images is None else None,
        ranks=trained.ranks,
        passed_over=trained.passed_over,
    )


def _images(pictures: Path | None, config: TrainConfig, origin: Origin, group: Group) -> Dataset:
    """Load the images to classify: pictures, or a data set. Collective."""
    if pictures is None:
        return load_dataset(config, group)
    description = origin.config.get("images")
    if not isinstance(description, dict):
        raise AgreedError("the checkpoint does not describe its images: give --data")
    return load_pictures(pictures, description, group)


def _make_room(out: Path) -> None:
    """Make the folder of an output file, before any work is done.

    Raises:
        HetmpError: it cannot be made or written to.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(f"no permission to write to {out.parent}")
    except OSError as error:
        raise HetmpError(f"{out} cannot be written: {error}") from error


@dataclass(frozen=True)
class _Found:
    """Class, its probability, and label of every image, or of every pixel: (n, *spatial)."""

    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def _predictions(model: SlicedModel, trained: Trained, part: Part) -> _Found:
    """Classify all images of *part*. Collective."""
    model.eval()
    classes, probabilities, label_parts = [], [], []
    with torch.no_grad():
        own = OwnImages(model)
        feed = trained.feed(model, part)
        for images, labels in feed.in_order(trained.config.batch_size, own.needed):
            best = wide(model(own.given(images, labels))).softmax(dim=1).max(dim=1)
            classes.append(best.indices.cpu().numpy())
            probabilities.append(best.values.cpu().to(torch.float32).numpy())
            label_parts.append(labels.cpu().numpy())
    return _Found(
        np.concatenate(classes), np.concatenate(probabilities), np.concatenate(label_parts)
    )


def _write(out: Path, predictions: _Found, dataset: Dataset, part: Part, *, labelled: bool) -> None:
    if out.suffix.lower() == ".csv":
        content = _csv(predictions, dataset, part, labelled=labelled).encode()
    else:
        content = _hdf5(predictions, dataset, part, labelled=labelled)
    try:
        with replacing(out) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise HetmpError(f"{out} cannot be written: {error}") from error


def _csv(predictions: _Found, dataset: Dataset, part: Part, *, labelled: bool) -> str:
    """Return a row per image: image, class, its name if it has one, probability, label if known."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    names = dict(enumerate(dataset.class_names))
    rows.writerow(
        ["image", "class", *(["name"] if names else []), "probability"]
        + (["label"] if labelled else [])
    )
    titles = part.titles(np.arange(len(part)))
    for i, title in enumerate(titles):
        name = [names.get(int(predictions.classes[i]), "")] if names else []
        label = [int(predictions.labels[i])] if labelled else []
        rows.writerow(
            [
                title,
                int(predictions.classes[i]),
                *name,
                f"{predictions.probabilities[i]:.6f}",
                *label,
            ]
        )
    return text.getvalue()


def _hdf5(predictions: _Found, dataset: Dataset, part: Part, *, labelled: bool) -> bytes:
    """Return an HDF5 file with ``image``, ``class``, ``probability``, ``label`` and ``names``."""
    # In memory, then written in one go: HDF5 does not survive a full disk.
    with h5py.File("predictions", "w", driver="core", backing_store=False) as file:
        titles = part.titles(np.arange(len(part)))
        file["image"] = np.array(titles, dtype=object)
        file["class"] = predictions.classes
        file["probability"] = predictions.probabilities
        if labelled:
            file["label"] = predictions.labels
        if dataset.class_names:
            file["names"] = np.array(dataset.class_names, dtype=object)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image
