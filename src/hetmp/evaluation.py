"""How good a network is on a test set: within a run, and of a checkpoint alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp import models
from hetmp.checkpoint.finding import newest_sound
from hetmp.checkpoint.origin import Origin, read_origin
from hetmp.checkpoint.state import restore
from hetmp.comm import AgreedError, Group, arranged, check_world
from hetmp.config import TrainConfig, train_config
from hetmp.data import Dataset, Split
from hetmp.device import choose_device, share_cores
from hetmp.errors import HetmpError
from hetmp.graph import Trace
from hetmp.plan import Plan
from hetmp.sharing import among_members, share_work
from hetmp.slicing import SlicedModel, Tuning, slice_model
from hetmp.workload import load_dataset, outline

if TYPE_CHECKING:
    from mpi4py import MPI

EVALUATION_BATCH = 256
"""Images per evaluation step; the result does not depend on it."""

SIZES = "shape", "classes", "samples"
"""Settings of synthetic data."""


def evaluate(
    model: SlicedModel,
    split: Split,
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int = EVALUATION_BATCH,
) -> tuple[float, float]:
    """(mean cross-entropy, accuracy from 0 to 1) over all labels of *split*. Collective."""
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(split), batch_size):
            images = split.images[begin : begin + batch_size].to(device, dtype)
            labels = split.labels[begin : begin + batch_size].to(device)
            output = model(images)
            loss += float(nn.functional.cross_entropy(output, labels, reduction="sum"))
            correct += count_correct(output, labels)
    return loss / split.labels.numel(), correct / split.labels.numel()


def count_correct(output: Tensor, labels: Tensor) -> int:
    """How many labels have the highest score."""
    return int((output.argmax(dim=1) == labels).sum())


def check_output(trace: Trace, dataset: Dataset, name: str) -> None:
    """Refuse a network *name* whose output, in the mode of *trace*, does not fit the labels.

    Raises:
        AgreedError: the output is the same on every rank.
    """
    value = trace.values.get(getattr(trace.result, "name", ""), None)
    if value is None or not value.is_tensor:
        raise AgreedError(
            f"{name} does not return one tensor: hetmp train and hetmp evaluate want class scores; "
            "use it in a loop of your own with hetmp.slice_model"
        )
    wanted = (dataset.classes, *dataset.test.labels.shape[1:])
    given = value.shape[1:]
    if len(given) != len(wanted) or given[1:] != wanted[1:] or (given[0] or 0) < wanted[0]:
        raise AgreedError(
            f"{name} gives {_sizes(given)} scores per image, the labels of {dataset.name} "
            f"want {_sizes(wanted)}: choose a network and data for the same task"
        )


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "×".join(str(size) for size in shape)


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint is worth.

    Attributes:
        file: the checkpoint.
        model, data: network and data set, by name.
        dtype: precision of the computation.
        steps: that the network was trained for; None where the file does not say.
        images: of the test set.
        loss, accuracy: mean cross-entropy, and the share from 0 to 1, of all labels.
        ranks: of the job.
        passed_over: what is wrong with newer checkpoints of the folder.
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
    path: Path, given: Mapping[str, Any], comm: "MPI.Intracomm | None" = None
) -> Evaluation:
    """Loss and accuracy of a checkpoint on a test set, the same on any ranks. Collective.

    Args:
        path: a checkpoint, or a run's folder: its ``model.h5``, else its newest sound checkpoint.
        given: fields of ``TrainConfig``: how the work is shared, and what the file does not say
            or what is to be another. Those that are None are not given.

    Raises:
        HetmpError: on every rank at once: bad input, or a file that cannot be used.
    """
    group = Group(comm)
    with group.together():
        if comm is None:
            check_world(group)
    comm, order = arranged(comm, group)  # as in training: plan files mean these ranks
    group = Group(comm)
    file, damaged = newest_sound(group, _pointed_at(group, path), named=True)
    if file is None:
        raise AgreedError("\n".join([f"there is no sound checkpoint in {path}", *damaged]))
    origin = read_origin(group, file)
    with group.together():
        config = _config(origin, file, given).in_order(order)
        torch.manual_seed(config.seed)
        dataset = load_dataset(config)
    share_cores(group)
    device = choose_device(group, config.device)
    shape, dtype = (config.batch_size, *dataset.input_shape), getattr(torch, config.dtype)

    example = torch.empty(shape, dtype=dtype, device="meta")
    sharing = share_work(
        config, partial(outline, config, dataset), example, group, device, Tuning()
    )

    def run(members: "MPI.Intracomm | None", plan: Plan | None) -> tuple[float, float]:
        model = _loaded(config, dataset, file, plan or sharing.weights, device, members)
        return evaluate(model, dataset.test, dtype, device, config.batch_size)

    figures = among_members(comm, group, sharing.plan, run, (0.0, 0.0))
    loss, accuracy = group.broadcast(np.array(figures), sharing.first_member).tolist()
    return Evaluation(
        file=str(file),
        model=config.model,
        data=config.data,
        dtype=config.dtype,
        steps=origin.step,
        images=len(dataset.test),
        loss=loss,
        accuracy=accuracy,
        ranks=group.size,
        passed_over=tuple(damaged),
    )


def _pointed_at(group: Group, path: Path) -> Path:
    """What to look at in place of a run's folder or of a link, as rank 0 sees it. Collective.

    A link is followed now, once for all ranks: a run that goes on moves ``latest.h5``.
    """
    found = path
    with group.together():
        if group.is_root:
            if (path / "model.h5").is_file():
                found = path / "model.h5"
            elif path.is_symlink() and path.is_file():
                found = path.parent / path.readlink()
    return Path(group.broadcast_text(str(found)))


def _config(origin: Origin, file: Path, given: Mapping[str, Any]) -> TrainConfig:
    """What is evaluated and how: as *given*, else as the file says."""
    chosen = {name: value for name, value in given.items() if value is not None}
    told = {
        name: origin.config[name]
        for name in ("model", "data", "seed", *SIZES)
        if name in origin.config
    }
    if "data" in chosen and chosen["data"] != told.get("data"):
        told = {name: value for name, value in told.items() if name not in SIZES}
    if "model" not in chosen and ":" in str(told.get("model", "")):
        raise HetmpError(
            f"{file} is of {told['model']}, and no file chooses which code is run: give --model"
        )
    missing = [name for name in ("model", "data") if name not in chosen and name not in told]
    if missing:
        raise HetmpError(
            f"{file} does not say its {' and '.join(missing)}: give "
            + " and ".join(f"--{name}" for name in missing)
        )
    return train_config(**{"batch_size": EVALUATION_BATCH, **told, "dtype": origin.dtype, **chosen})


def _loaded(
    config: TrainConfig,
    dataset: Dataset,
    file: Path,
    weights: tuple[float, ...] | Plan,
    device: torch.device,
    comm: "MPI.Intracomm | None",
) -> SlicedModel:
    """The network with the numbers of a checkpoint, whose digests were compared. Collective."""
    group, dtype = Group(comm), getattr(torch, config.dtype)
    # A network of the user's own may make tensors that no file has: it is built as it trains.
    shipped = config.model in models.names()
    with group.together(), torch.device("meta" if shipped else "cpu"):
        module = models.build(config.model, dataset.input_shape, dataset.classes).to(dtype)
    model = slice_model(
        module,
        weights,
        comm,
        example_input=torch.empty((2, *dataset.input_shape), dtype=dtype, device="meta"),
        init=_nothing if shipped else None,
        device=device,
    )
    check_output(model.hetmp.graph.evaluation, dataset, config.model)
    restore(model, file, verified=True)
    return model


def _nothing(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A parameter that is read from a file afterwards: it takes no memory."""
    return torch.zeros(()).expand(shape)
