"""Load a trained network from a checkpoint, on any ranks, and use it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hetmp import models
from hetmp.checkpoint.folder import newest_sound
from hetmp.checkpoint.origin import Origin, read_origin
from hetmp.checkpoint.save_load import restore
from hetmp.cluster import AgreedError, Group
from hetmp.cluster.slowdown import check_slowdown
from hetmp.core.errors import HetmpError
from hetmp.data import Dataset, Feed, Part, Reading, options_of
from hetmp.run.build import load_dataset, with_values, without_values
from hetmp.run.config import OF_DATA, TrainConfig, train_config
from hetmp.run.precision import wire_of
from hetmp.run.rank_setup import order_ranks, set_up_rank
from hetmp.run.work_split import among_members, share_work
from hetmp.slicing import SlicedModel, Tuning, slice_model
from hetmp.slicing.graph import Trace
from hetmp.slicing.plan import Plan

if TYPE_CHECKING:
    from mpi4py import MPI

EVALUATION_BATCH = 256
"""Images per evaluation step; the result does not depend on it."""


@dataclass(frozen=True)
class Trained:
    """A checkpoint and the settings with which its network is used.

    Attributes:
        file: the checkpoint.
        origin: metadata of the checkpoint.
        config: settings of this use.
        dataset: the data set to use it on.
        device: device of this rank.
        ranks: number of ranks of the job.
        passed_over: a reason for each newer checkpoint of the folder that cannot be used.
    """

    file: Path
    origin: Origin
    config: TrainConfig
    dataset: Dataset
    device: torch.device
    ranks: int
    passed_over: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the network's parameters."""
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        return dtype

    def feed(self, model: SlicedModel, part: Part) -> Feed:
        """Return a feed of the batches of *part* for *model*."""
        reading = Reading(model.hetmp.plan.held, self.config.readers, self.device, self.dtype)
        return Feed(self.dataset, part, model.hetmp.group, reading)


Work = Callable[[SlicedModel, Trained], Sequence[float]]
Load = Callable[[TrainConfig, Origin, Group], Dataset]


def run_on_trained(
    path: Path,
    settings: Mapping[str, Any],
    comm: "MPI.Intracomm | None",
    work: Work,
    figures: int,
    load: Load = lambda config, origin, group: load_dataset(config, group),
) -> tuple[Trained, list[float]]:
    """Load a checkpoint's network and call *work* with it. Collective.

    Args:
        path: a checkpoint, or a run's folder: its ``model.h5``, else its newest sound checkpoint.
        settings: fields of ``TrainConfig``; they win over the file's own. None counts as missing.
        comm: the ranks of the job; ``MPI.COMM_WORLD`` if None.
        work: called on the ranks that take part; returns as many numbers as *figures* says.
        load: loads the data set to use. Collective.

    Returns:
        The checkpoint with its settings, and the result of *work*, the same on every rank.

    Raises:
        HetmpError: on every rank at once: bad input, or a file that cannot be used.
    """
    ranks = order_ranks(comm)  # as in training: plan files mean these ranks
    group = ranks.group
    file, damaged = newest_sound(group, _pointed_at(group, path), named=True)
    if file is None:
        raise AgreedError("\n".join([f"there is no sound checkpoint in {path}", *damaged]))
    origin = read_origin(group, file)
    with group.together():
        config = _config(origin, file, settings).in_order(ranks.order)
        if config.slowdown:
            check_slowdown(config.slowdown, group.size)
    dataset = load(config, origin, group)
    setup = set_up_rank(
        ranks,
        config.device,
        autocast=config.autocast,
        slowdown=config.slowdown,
        seed=config.seed,
    )
    trained = Trained(file, origin, config, dataset, setup.device, group.size, tuple(damaged))
    tuning = Tuning(wire=wire_of(config))
    sharing = share_work(config, dataset, setup, tuning)

    def run(members: "MPI.Intracomm | None", plan: Plan | None) -> Sequence[float]:
        model = _loaded(trained, plan or sharing.weights, tuning, members)
        with setup.casting():
            return work(model, trained)

    result = among_members(ranks.comm, group, sharing.plan, run, (0.0,) * figures)
    shared = group.broadcast(np.array(result, dtype=np.float64), sharing.first_member)
    return trained, shared.tolist()


def _pointed_at(group: Group, path: Path) -> Path:
    """Return the file that a run's folder or a link stands for, as rank 0 sees it. Collective.

    A link is followed once for all ranks, since a run that is still going moves ``latest.h5``.
    """
    target = path
    with group.together():
        if group.is_root:
            if (path / "model.h5").is_file():
                target = path / "model.h5"
            elif path.is_symlink() and path.is_file():
                target = path.parent / path.readlink()
    return Path(group.broadcast_text(str(target)))


def _config(origin: Origin, file: Path, settings: Mapping[str, Any]) -> TrainConfig:
    """Make the configuration of the use: as *settings*, else as in the file."""
    chosen = {name: value for name, value in settings.items() if value is not None}
    stored = {
        name: origin.config[name]
        for name in ("model", "data", "seed", *OF_DATA)
        if name in origin.config
    }
    if "data" in chosen and chosen["data"] != stored.get("data"):
        stored = {name: value for name, value in stored.items() if name not in OF_DATA}
    stored |= _normalisation(origin, chosen.get("data", stored.get("data")))
    if "model" not in chosen and ":" in str(stored.get("model", "")):
        raise HetmpError(
            f"{file} holds a network of your own code, {stored['model']}, and a file must not "
            "choose which code is run: give --model"
        )
    missing = [name for name in ("model", "data") if name not in chosen and name not in stored]
    if missing:
        raise HetmpError(
            f"{file} does not name its {' and '.join(missing)}: give "
            + " and ".join(f"--{name}" for name in missing)
        )
    return train_config(
        **{"batch_size": EVALUATION_BATCH, **stored, "dtype": origin.dtype, **chosen}
    )


def _normalisation(origin: Origin, data: str | None) -> dict[str, Any]:
    """Return mean and deviation of the training, if the data set *data* takes them."""
    images = origin.config.get("images")
    if not isinstance(images, dict) or images["normalised"] or "mean" not in options_of(data):
        return {}
    return {"mean": tuple(images["mean"]), "std": tuple(images["std"])}


def _loaded(
    trained: Trained,
    weights: tuple[float, ...] | Plan,
    tuning: Tuning,
    comm: "MPI.Intracomm | None",
) -> SlicedModel:
    """Slice the network and fill it from a checkpoint with verified digests. Collective."""
    group, dataset, name = Group(comm), trained.dataset, trained.config.model
    # A network of the user's own may make tensors that no file has: it is built as it trains.
    shipped = name in models.names()
    build = without_values if shipped else with_values
    module = build(name, dataset.input_shape, dataset.classes, group).to(trained.dtype)
    model = slice_model(
        module,
        weights,
        comm,
        schemes=trained.config.schemes,
        example_input=torch.empty((2, *dataset.input_shape), dtype=trained.dtype, device="meta"),
        init=_nothing if shipped else None,
        device=trained.device,
        tuning=tuning,
        verify=False,  # it was, when it was trained; and here it may have no values yet
    )
    check_output(model.hetmp.graph.evaluation, dataset, name)
    # Where weights were averaged, the averages are the network: they take the weights' place.
    averages = {name: model.get_parameter(name) for name in trained.origin.averaged}
    restore(model, trained.file, averages=averages, verified=True)
    return model


def _nothing(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a placeholder without memory for a parameter that is read from a file later."""
    return torch.zeros(()).expand(shape)


def check_output(trace: Trace, dataset: Dataset, name: str) -> None:
    """Refuse a network whose output does not fit the labels.

    Args:
        trace: the network in the mode whose output is looked at.
        dataset: whose labels are compared.
        name: of the network, for the message.

    Raises:
        AgreedError: the output is not one tensor, or has a shape that does not fit the labels.
    """
    value = trace.values.get(getattr(trace.result, "name", ""), None)
    if value is None or not value.is_tensor:
        raise AgreedError(
            f"{name} does not return one tensor: hetmp train and hetmp evaluate need class scores; "
            "use it in a loop of your own with hetmp.slice_model"
        )
    wanted = (dataset.classes, *dataset.test.label_shape)
    scores = value.shape[1:]
    if len(scores) != len(wanted) or scores[1:] != wanted[1:] or (scores[0] or 0) < wanted[0]:
        raise AgreedError(
            f"{name} returns {_sizes(scores)} scores per image, but the labels of {dataset.name} "
            f"need {_sizes(wanted)}: choose a network and data for the same task"
        )


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "×".join(str(size) for size in shape)
