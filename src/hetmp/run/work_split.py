"""Choose how a run's work is shared: by weights, a plan file, or measured speeds."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hetmp.cluster import AgreedError, Group
from hetmp.cluster.slurm import node_kind
from hetmp.core.errors import HetmpError
from hetmp.data import Dataset
from hetmp.optim import numbers_kept
from hetmp.run.build import outline
from hetmp.run.config import TrainConfig
from hetmp.run.rank_setup import RankSetup
from hetmp.slicing import Tuning
from hetmp.slicing.graph import fingerprint, read_graph
from hetmp.slicing.plan import Plan

if TYPE_CHECKING:
    from mpi4py import MPI

    from hetmp.planner import Planned
    from hetmp.planner.profiling import Profile


@dataclass(frozen=True)
class Sharing:
    """The division of the work over the ranks.

    Attributes:
        plan: for all ranks of the job; None if ``weights`` decide.
        weights: relative speeds, one per rank.
        decision: the decision as text for the user; empty if the user decided.
    """

    plan: Plan | None
    weights: tuple[float, ...]
    decision: str = ""

    @property
    def first_member(self) -> int:
        """Return the first rank that takes part."""
        return self.plan.members[0] if self.plan is not None else 0


def share_work(config: TrainConfig, dataset: Dataset, setup: RankSetup, tuning: Tuning) -> Sharing:
    """Decide how *config* shares the work of its network over the ranks. Collective.

    Args:
        config: of the run.
        dataset: whose batches are measured where the work is shared by measurement.
        setup: of this rank; its group is that of the job.
        tuning: with which the network will run.

    Raises:
        HetmpError: on every rank: a plan or profile that cannot be read, or is for other ranks,
            another model or another batch.
    """
    group = setup.group
    equal = (1.0,) * group.size
    weights = config.weights if isinstance(config.weights, tuple) else equal
    if config.plan is None and (not config.plans or group.size == 1):
        return Sharing(None, weights)
    # Imported where needed: they take SciPy, whose import takes as long as a small run's start.
    from hetmp.planner import PlanOptions, make_plan
    from hetmp.planner.profiling import device_title

    with setup.casting():  # a rank's speed is that in its own precision
        if config.plan is not None:
            titles = group.gather_texts(device_title(setup.device, setup.slowdown))
            with group.together():
                plan = Plan.load(config.plan)
                plan.check_ranks(group.size)
            named = group.broadcast_text(plan.fingerprint)
            network = outline(config, dataset, group) if named else None
            with group.together():
                check_plan(plan, titles, network)
            return Sharing(plan, equal)
        module, example = outline(config, dataset, group)
        profile = _profile(config, module, example, setup, tuning)
    text, decision = "", ""
    with group.together():
        # Unlike processors may round unlike: rank 0's plan is the truth.
        if group.is_root:
            states = numbers_kept(config.optimizer, config.keywords_of_optimizer)
            options = PlanOptions(optimizer_states=states)
            planned = make_plan(read_graph(module, example), profile, options)
            text, decision = planned.plan.model_dump_json(), _summary(planned)
    plan = Plan.model_validate_json(group.broadcast_text(text))
    return Sharing(plan, equal, group.broadcast_text(decision))


def _profile(
    config: TrainConfig, module: nn.Module, example: Tensor, setup: RankSetup, tuning: Tuning
) -> "Profile":
    """Read the ranks' speeds from a file, or measure those that are not stored. Collective.

    Args:
        module, example: the network and a batch, on the meta device.
    """
    from hetmp.planner.profiling import (
        Budget,
        Profile,
        device_title,
        profile_by_kind,
        profile_model,
    )

    group = setup.group
    if config.profile is None:
        measure: Callable[..., Profile] = profile_model
        if config.profiles is not None:
            measure = partial(profile_by_kind, folder=config.profiles, kind=node_kind())
        else:
            group.say(f"measuring the ranks, about {config.profile_seconds:g} s")
        return measure(
            module,
            example,
            group,
            name=config.model,
            device=setup.device,
            budget=Budget(config.profile_seconds, schemes=("batch",)),
            tuning=tuning,
            slowdown=setup.slowdown,
        )
    titles = group.gather_texts(device_title(setup.device, setup.slowdown))
    with group.together():
        profile = Profile.load(config.profile)
        profile.check_devices(titles)
        profile.check_batch(config.batch_size, config.dtype)
    return profile


def check_plan(plan: Plan, titles: list[str], network: tuple[nn.Module, Tensor] | None) -> None:
    """Refuse a plan for other devices, or for another model than *network*, if one is given.

    Args:
        plan: to check, for as many ranks as there are.
        titles: of the ranks' devices, as ``device_title`` names them.
        network: a module and a batch for it.

    Raises:
        HetmpError: naming what the plan was made for.
    """
    if network is not None and plan.fingerprint != fingerprint(read_graph(*network)):
        raise HetmpError(
            "the plan was made for another model, or for images of another size: make one for "
            "this model"
        )
    for rank, (title, planned) in enumerate(zip(titles, plan.devices or titles, strict=True)):
        if title != planned:
            raise HetmpError(
                f"rank {rank} is {title}, but the plan was made for {planned}: make a plan for "
                "these ranks, or remove 'devices' from the file to use it as it is"
            )


def _summary(planned: "Planned") -> str:
    lines = [f"planned: {1e3 * planned.prediction.seconds:.0f} ms a step predicted"]
    lines += [f"rank {rank} is left out: {why}" for rank, why in sorted(planned.left_out.items())]
    return "\n".join(lines)


def among_members(
    comm: "MPI.Intracomm | None",
    group: Group,
    plan: Plan | None,
    run: "Callable[[MPI.Intracomm | None, Plan | None], Any]",
    waiting: Any,
) -> Any:
    """Call *run* on the ranks that take part; the others wait. Collective.

    Args:
        comm: communicator of all ranks, that of *group*.
        plan: for all ranks; None if all take part.
        run: called with the members' communicator and the plan for them.
        waiting: result on ranks that do not take part.

    Returns:
        The result of *run* on members, else *waiting*.
    """
    if plan is None or not plan.left_out:
        return run(comm, plan)
    return _among_some(group, plan, run, waiting)


def _among_some(
    group: Group, plan: Plan, run: "Callable[[MPI.Intracomm, Plan], Any]", waiting: Any
) -> Any:
    """Do the work of ``among_members`` if some ranks are left out."""
    comm = group.part(plan.members)
    with contextlib.ExitStack() as stack:
        if comm is not None and comm.rank == 0 and not group.is_root:
            # The first member speaks where rank 0 has no part.
            stack.enter_context(contextlib.redirect_stdout(sys.__stdout__))
        result, error = waiting, None
        try:
            if comm is not None:
                result = run(comm, plan.of_members())
        except HetmpError as caught:
            # Where all members raise it, all can meet; a lone one's job must be aborted.
            if not isinstance(caught, AgreedError) and not Group(comm).all_fail():
                raise
            error = caught
    group.meet()
    with group.together():
        if error is not None:
            raise error
    return result
