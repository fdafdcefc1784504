"""The sliced networks of a bench: that of its schemes, and those of variants that are cuts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor, nn

from hetmp.cluster.slowdown import Slowdown
from hetmp.core.documents import read
from hetmp.core.scheme_choice import is_word, read_schemes
from hetmp.run.rank_setup import RankSetup
from hetmp.run.work_split import among_members, check_plan
from hetmp.slicing import SlicedModel, slice_model
from hetmp.slicing.plan import Plan
from hetmp.slicing.step_bytes import step_bytes
from hetmp.tools.bench.config import BenchConfig

if TYPE_CHECKING:
    from mpi4py import MPI

Schemes: TypeAlias = str | Mapping[str, str] | Plan
"""How layers are cut: in a word or by layer, for the weights of the bench; or by a plan."""


@dataclass(frozen=True)
class Cut:
    """A network in one cut.

    Attributes:
        model: this rank's slices; None on a rank that its plan leaves out.
        received: bytes that each rank receives in a step.
    """

    model: SlicedModel | None
    received: tuple[int, ...]

    def exchange_seconds(self) -> float:
        """Return the seconds that this rank has spent in exchanges so far."""
        if self.model is None:
            return 0.0
        return sum(self.model.hetmp.exchange_seconds(self.model).values())


def read_cut(name: str) -> Schemes:
    """Return the cut of a name: schemes in a word or by layer, or a plan.

    Raises:
        HetmpError: the file of that name is neither of schemes nor of a plan.
    """
    if is_word(name):
        return name
    try:
        content = json.loads(read(name, "plan"))
    except ValueError:
        content = None
    if isinstance(content, dict) and "format" in content:
        return Plan.load(name)
    return read_schemes(name)


def make_cut(
    schemes: Schemes,
    network: tuple[nn.Module, Tensor],
    config: BenchConfig,
    setup: RankSetup,
    slowdown: Slowdown,
    verify: bool,
) -> Cut:
    """Slice a network over the ranks that take part. Collective over all.

    Args:
        schemes: of its layers, for the weights of the bench; or a plan.
        network: the whole module, with values on the first rank that takes part, and a batch.
        config: of the bench.
        setup: of this rank.
        slowdown: of this rank.
        verify: whether to hold what is read of the module against the module.

    Raises:
        HetmpError: on every rank: see ``slice_model``; a plan for other ranks or another model.
    """
    group, (module, x) = setup.group, network
    plan, by_weights = (schemes, None) if isinstance(schemes, Plan) else (None, schemes)
    if plan is not None:
        from hetmp.planner.profiling import device_title  # SciPy, which takes a second to import

        titles = group.gather_texts(device_title(setup.device, setup.slowdown))
        with group.together():
            plan.check_ranks(group.size)
            check_plan(plan, titles, network if plan.fingerprint else None)

    def sliced(members: "MPI.Intracomm | None", own: Plan | None) -> SlicedModel:
        return slice_model(
            module,
            config.weights if own is None else own,
            members,
            schemes=by_weights,
            example_input=x,
            verify=verify,
        )

    model: SlicedModel | None = among_members(setup.ranks.comm, group, plan, sliced, None)
    received = 0
    if model is not None:
        model.hetmp.group.slowdown = slowdown
        runtime = model.hetmp
        moved = step_bytes(runtime.graph, runtime.schedule, runtime.table, config.batch_size)
        received = moved.received[runtime.group.rank]
    return Cut(model, tuple(group.allgather(np.array([received])).ravel().tolist()))
