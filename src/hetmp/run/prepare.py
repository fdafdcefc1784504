"""Prepare a run: its data, ranks, division of the work, sliced model and training step."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hetmp import data, models
from hetmp.cluster import Group
from hetmp.cluster.placement import RankPlace, gather_places, show_placement
from hetmp.data import Augmentation, Dataset, Feed, Reading
from hetmp.run.batch_sizes import check_batches
from hetmp.run.build import load_dataset, with_values, without_values
from hetmp.run.config import TrainConfig
from hetmp.run.load_trained import check_output
from hetmp.run.precision import wire_of
from hetmp.run.rank_setup import RankSetup, order_ranks, set_up_rank
from hetmp.run.step import TrainStep
from hetmp.run.stop_signals import Interruption
from hetmp.run.work_split import Sharing, among_members, share_work
from hetmp.slicing import SlicedModel, Tuning, slice_model
from hetmp.slicing.plan import Plan
from hetmp.slicing.recording import resident
from hetmp.slicing.verification import UnverifiedWarning

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Prepared:
    """A run on a rank that takes part, ready to take its steps.

    Attributes:
        original_config: the configuration as the user gave it, in the job's order of the ranks.
        config: the same with the settings of each rank in the order of the ranks.
        setup: of this rank.
        places: where all ranks of the job run.
        resident: bytes of memory that this rank had before the model was made.
        interruption: tells whether a signal asked the run to end.
        group: the ranks that take part.
        sharing: how the work is shared over all ranks of the job.
        plan: the plan for all ranks of the job.
        model: the sliced network with its initial weights.
        steps: number of steps of the run, ``per_epoch`` in each epoch.
        feed, test_feed: batches of the training and test images.
    """

    original_config: TrainConfig
    config: TrainConfig
    setup: RankSetup
    places: tuple[RankPlace, ...]
    resident: int
    interruption: Interruption
    dataset: Dataset
    group: Group
    sharing: Sharing
    plan: Plan
    model: SlicedModel
    train_step: TrainStep
    steps: int
    per_epoch: int
    feed: Feed
    test_feed: Feed


def run_prepared(
    config: TrainConfig,
    comm: "MPI.Intracomm | None",
    run: Callable[[Prepared], Any],
    waiting: Any,
) -> tuple[Any, int, Group]:
    """Prepare a run and call *run* with it on the ranks that take part. Collective.

    Args:
        config: of the run, with the settings of each rank in the job's own order.
        comm: the ranks of the job; ``MPI.COMM_WORLD`` if None.
        run: called on the ranks that take part.
        waiting: result on the other ranks.

    Returns:
        The result, the first rank that takes part, and the group of all ranks.

    Raises:
        HetmpError: bad input, on every rank at once.
    """
    ranks = order_ranks(comm, config.slowdown)
    original_config, config = config, config.in_order(ranks.order)
    dataset = load_dataset(config, ranks.group)
    with ranks.group.together():
        augmentation(config).check(dataset)
    # Without a folder there is nothing to stop for: signals then do what they do to any program.
    heeded = (config.stop_signal, "TERM") if config.out else ()
    with Interruption(heeded) as interruption:
        setup = set_up_rank(
            ranks,
            config.device,
            autocast=config.autocast,
            slowdown=config.slowdown,
            seed=config.seed,
        )
        places = gather_places(setup.group, setup.device, setup.threads)
        if setup.group.is_root:
            show_placement(places)
        sharing = share_work(config, dataset, setup, tuning_of(config))
        before = resident()

        def run_on(members: "MPI.Intracomm | None", plan: Plan | None) -> Any:
            group, images = Group(members), len(dataset.train)
            with group.together():
                per_epoch = data.count_batches(images, config.batch_size, config.drop_last)
            model = _sliced(config, dataset, setup, members, plan or sharing.weights)
            with group.together():
                steps = config.total_steps(per_epoch)
                check_batches(config, model.hetmp.graph, images, steps)
                train_step = TrainStep(config, model, steps, setup.device, setup.autocast)
            dtype = getattr(torch, config.dtype)
            reading = Reading(model.hetmp.plan.held, config.readers, setup.device, dtype)
            return run(
                Prepared(
                    original_config=original_config,
                    config=config,
                    setup=setup,
                    places=places,
                    resident=before,
                    interruption=interruption,
                    dataset=dataset,
                    group=group,
                    sharing=sharing,
                    plan=sharing.plan or model.hetmp.plan,
                    model=model,
                    train_step=train_step,
                    steps=steps,
                    per_epoch=per_epoch,
                    feed=Feed(dataset, dataset.train, group, reading, augmentation(config)),
                    test_feed=Feed(dataset, dataset.test, group, reading),
                )
            )

        result = among_members(ranks.comm, ranks.group, sharing.plan, run_on, waiting)
        return result, sharing.first_member, ranks.group


def _sliced(
    config: TrainConfig,
    dataset: Dataset,
    setup: RankSetup,
    comm: "MPI.Intracomm | None",
    weights: tuple[float, ...] | Plan,
) -> SlicedModel:
    """Slice the network of *config* over the ranks of *comm*. Collective."""
    group, dtype = Group(comm), getattr(torch, config.dtype)
    torch.manual_seed(config.seed)
    images = (dataset.input_shape, dataset.classes)
    if config.layerwise:
        said = isinstance(weights, Plan) and weights.fingerprint  # by whoever compared them
        module = without_values(config.model, *images, group, seed=config.seed, say=not said)
    else:
        module = with_values(config.model, *images, group)
    module = module.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedWarning)  # said below, by its name
        model = slice_model(
            module,
            weights,
            comm,
            schemes=config.schemes,
            backward=dict.fromkeys(config.recompute or (), "recompute"),
            example_input=torch.empty((2, *dataset.input_shape), dtype=dtype, device="meta"),
            init=models.layer_by_layer(module) if config.layerwise else None,
            device=setup.device,
            strict=config.strict,
            tuning=tuning_of(config),
            verify=not config.no_verify,
        )
    verification = model.hetmp.verification
    if not config.no_verify and (verification.reason or verification.attributes):
        group.say(f"{config.model}: {verification}")
    check_output(model.hetmp.graph.training, dataset, config.model)
    model.hetmp.group.slowdown.factor = setup.slowdown
    return model


def augmentation(config: TrainConfig) -> Augmentation:
    """Return the augmentation of the training images."""
    return Augmentation(config.flip, config.crop)


def tuning_of(config: TrainConfig) -> Tuning:
    """Return the tuning that *config* asks for."""
    return Tuning(
        shared_memory=not config.no_shared_memory,
        regather=config.regather,
        rounded=config.rounded,
        wire=wire_of(config),
    )
