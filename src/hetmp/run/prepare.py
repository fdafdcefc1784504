"""A run made ready: its data, its ranks, how the work is shared, the sliced model, its steps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hetmp import data, models
from hetmp.cluster import Group, arranged, check_world
from hetmp.cluster.device import choose_device, share_cores
from hetmp.cluster.placement import RankPlace, gather_places, show_placement
from hetmp.cluster.slowdown import check_slowdown
from hetmp.data import Augmentation, Dataset, Feed, Reading
from hetmp.run.build import load_dataset, outline
from hetmp.run.config import TrainConfig
from hetmp.run.load_trained import check_output
from hetmp.run.precision import autocast_of, casting, wire_of
from hetmp.run.step import Steps
from hetmp.run.stop_signals import Interruption
from hetmp.run.work_split import Sharing, among_members, share_work
from hetmp.slicing import SlicedModel, Tuning, slice_model
from hetmp.slicing.plan import Plan
from hetmp.slicing.recording import resident

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Workplace:
    """What this rank works with.

    Attributes:
        told: the run's configuration, before ranks of a host became neighbours.
        places: of all ranks of the job.
        device, threads: of this rank.
        autocast: what this rank's convolutions are computed in, if not as the weights are.
        slowdown: of this rank, on purpose.
        resident: bytes of memory that this rank had before the model was made.
        interruption: whether it was asked to end the run.
    """

    told: TrainConfig
    places: tuple[RankPlace, ...]
    device: torch.device
    threads: int
    autocast: torch.dtype | None
    slowdown: float
    resident: int
    interruption: Interruption


@dataclass(frozen=True)
class Prepared:
    """A run on a rank that takes part, ready to take its steps.

    Attributes:
        config: with the settings of each rank in the order of the ranks.
        group: the ranks that take part.
        sharing: how the work is shared over all ranks of the job, and ``plan`` the plan for them.
        model: with the network's first weights.
        steps: how many the run takes, ``per_epoch`` in each epoch.
        feed, test_feed: batches of the training and test images.
    """

    config: TrainConfig
    workplace: Workplace
    dataset: Dataset
    group: Group
    sharing: Sharing
    plan: Plan
    model: SlicedModel
    stepping: Steps
    steps: int
    per_epoch: int
    feed: Feed
    test_feed: Feed


def on_members(
    config: TrainConfig,
    comm: "MPI.Intracomm | None",
    run: Callable[[Prepared], Any],
    waiting: Any,
) -> tuple[Any, int, Group]:
    """What *run* gives on the ranks that take part, and *waiting* on others. Collective.

    Returns:
        It, the first rank that takes part, and the group of all ranks.

    Raises:
        HetmpError: bad input, on every rank at once.
    """
    group = Group(comm)
    with group.together():
        if comm is None:
            check_world(group)
        if config.slowdown:
            check_slowdown(config.slowdown, group.size)
        torch.manual_seed(config.seed)
    dataset = load_dataset(config, group)
    with group.together():
        augmentation(config).check(dataset)
    comm, order = arranged(comm, group)
    group, told, config = Group(comm), config, config.in_order(order)
    # Without a folder there is nothing to stop for: signals then do what they do to any program.
    heeded = (config.stop_signal, "TERM") if config.out else ()
    with Interruption(heeded) as interruption:
        threads = share_cores(group)
        device = choose_device(group, config.device)
        places = gather_places(group, device, threads)
        if group.is_root:
            show_placement(places)
        shape = (config.batch_size, *dataset.input_shape)
        example = torch.empty(shape, dtype=getattr(torch, config.dtype), device="meta")
        autocast = autocast_of(config.autocast, group)
        with casting(autocast, device):
            sharing = share_work(
                config, partial(outline, config, dataset), example, group, device, _tuning(config)
            )
        slowdown = config.slowdown[group.rank] if config.slowdown else 1.0
        workplace = Workplace(
            told, places, device, threads, autocast, slowdown, resident(), interruption
        )

        def prepared(members: "MPI.Intracomm | None", plan: Plan | None) -> Any:
            return run(_prepare(config, workplace, dataset, sharing, members, plan))

        result = among_members(comm, group, sharing.plan, prepared, waiting)
        return result, sharing.first_member, group


def _prepare(
    config: TrainConfig,
    workplace: Workplace,
    dataset: Dataset,
    sharing: Sharing,
    comm: "MPI.Intracomm | None",
    plan: Plan | None,
) -> Prepared:
    """Make ready on the ranks of *comm*, by *plan* or by the weights of *sharing*. Collective."""
    group, device = Group(comm), workplace.device
    with group.together():
        dtype = getattr(torch, config.dtype)
        torch.manual_seed(config.seed)
        module = _build(config, dataset, group).to(dtype)
        per_epoch = data.count_batches(len(dataset.train), config.batch_size, config.drop_last)
    model = slice_model(
        module,
        plan or sharing.weights,
        comm,
        example_input=torch.empty((2, *dataset.input_shape), dtype=dtype, device="meta"),
        init=models.layer_by_layer(module) if config.layerwise else None,
        device=device,
        strict=config.strict,
        tuning=_tuning(config),
    )
    del module
    check_output(model.hetmp.graph.training, dataset, config.model)
    model.hetmp.group.pace.factor = workplace.slowdown
    steps = config.total_steps(per_epoch)
    with group.together():
        stepping = Steps(config, model, steps, device, workplace.autocast)
    reading = Reading(model.hetmp.plan.held, config.readers, device, dtype)
    return Prepared(
        config,
        workplace,
        dataset,
        group,
        sharing,
        sharing.plan or model.hetmp.plan,
        model,
        stepping,
        steps,
        per_epoch,
        Feed(dataset, dataset.train, group, reading, augmentation(config)),
        Feed(dataset, dataset.test, group, reading),
    )


def augmentation(config: TrainConfig) -> Augmentation:
    """What happens to the training images."""
    return Augmentation(config.flip, config.crop)


def _tuning(config: TrainConfig) -> Tuning:
    return Tuning(
        shared_memory=not config.no_shared_memory,
        regather=config.regather,
        rounded=config.rounded,
        wire=wire_of(config),
    )


def _build(config: TrainConfig, dataset: Dataset, group: Group) -> nn.Module:
    """The whole network; the values are rank 0's, so other ranks spare the memory.

    Layer by layer, no rank has values.
    """
    shipped = config.model in models.names()
    here = not config.layerwise and (group.is_root or not shipped)
    with nullcontext() if here else torch.device("meta"):
        return models.build(config.model, dataset.input_shape, dataset.classes)
