"""Evaluate a network on a test set, within a run or from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hetmp.data import Feed
from hetmp.run.load_trained import Trained, run_on_trained
from hetmp.run.own_images import OwnImages
from hetmp.run.precision import wide
from hetmp.slicing import SlicedModel

if TYPE_CHECKING:
    from mpi4py import MPI


def evaluate(model: SlicedModel, feed: Feed, batch_size: int) -> tuple[float, float]:
    """Return (mean cross-entropy, accuracy from 0 to 1) over all labels of *feed*. Collective.

    Puts *model* into evaluation mode, and gives it *batch_size* images at a time.
    """
    model.eval()
    loss, correct, labelled = 0.0, 0, 0
    with torch.no_grad():
        own = OwnImages(model)
        for images, labels in feed.in_order(batch_size, own.needed):
            output = wide(model(own.given(images, labels)))
            loss += float(nn.functional.cross_entropy(output, labels, reduction="sum"))
            correct += count_correct(output, labels)
            labelled += labels.numel()
    return loss / labelled, correct / labelled


def count_correct(output: Tensor, labels: Tensor) -> int:
    """Count the labels with the highest score.

    Args:
        output: (n, classes, *spatial) scores.
        labels: (n, *spatial).
    """
    return int((output.argmax(dim=1) == labels).sum())


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a checkpoint.

    Attributes:
        file: the checkpoint.
        model, data: names of the network and the data set.
        dtype: precision of the computation.
        steps: number of training steps; None if the file does not say.
        images: number of test images.
        loss: mean cross-entropy over all labels.
        accuracy: share of the labels predicted, from 0 to 1.
        ranks: number of ranks of the job.
        passed_over: a reason for each newer checkpoint of the folder that cannot be used.
    """

    file: str
    model: str
    data: str
    dtype: str
    steps: int | None
    images: int
    loss: float
    accuracy: float
    ranks: int
    passed_over: tuple[str, ...]


def evaluate_checkpoint(
    path: Path, settings: Mapping[str, Any], comm: "MPI.Intracomm | None" = None
) -> Evaluation:
    """Compute loss and accuracy of a checkpoint, the same on any ranks. Collective.

    Args:
        path: a checkpoint, or a run's folder: its ``model.h5``, else its newest sound checkpoint.
        settings: fields of ``TrainConfig``; they win over the file's own. None counts as missing.
        comm: the ranks of the job; ``MPI.COMM_WORLD`` if None.

    Raises:
        HetmpError: on every rank at once: bad input, or a file that cannot be used.
    """

    def work(model: SlicedModel, trained: Trained) -> list[float]:
        feed = trained.feed(model, trained.dataset.test)
        return list(evaluate(model, feed, trained.config.batch_size))

    trained, (loss, accuracy) = run_on_trained(path, settings, comm, work, 2)
    return Evaluation(
        file=str(trained.file),
        model=trained.config.model,
        data=trained.config.data,
        dtype=trained.config.dtype,
        steps=trained.origin.step,
        images=len(trained.dataset.test),
        loss=loss,
        accuracy=accuracy,
        ranks=trained.ranks,
        passed_over=trained.passed_over,
    )
