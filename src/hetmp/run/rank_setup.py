"""Set up the ranks of a command that computes: order, devices, cores, precision."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from hetmp.cluster import Group, arranged, check_world
from hetmp.cluster.device import choose_device, share_cores
from hetmp.cluster.slowdown import check_slowdown
from hetmp.run.precision import autocast_of, casting

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


@dataclass(frozen=True)
class RankOrder:
    """The ranks of a job, those of a host next to each other.

    Attributes:
        comm, group: all ranks; *comm* is None for ``MPI.COMM_WORLD`` as it stands.
        order: for each rank, its number in the job as it was started.
    """

    comm: "MPI.Intracomm | None"
    group: Group
    order: tuple[int, ...]

    def arrange(self, values: tuple[T, ...] | None) -> tuple[T, ...] | None:
        """Return *values*, one per rank as the job was started, in the present order.

        Values of another length are returned unchanged: a single value is for all ranks.
        """
        if values is None or len(values) != len(self.order):
            return values
        return tuple(values[rank] for rank in self.order)


@dataclass(frozen=True)
class RankSetup:
    """This rank, ready to build a model.

    Attributes:
        ranks: of the job.
        device, threads: of this rank.
        autocast: dtype of this rank's convolutions; None for that of the weights.
        slowdown: factor by which this rank is slowed on purpose.
    """

    ranks: RankOrder
    device: torch.device
    threads: int
    autocast: torch.dtype | None
    slowdown: float

    @property
    def group(self) -> Group:
        """Return the group of all ranks of the job."""
        return self.ranks.group

    def casting(self) -> AbstractContextManager[Any]:
        """Return a context in which this rank computes in its own precision."""
        return casting(self.autocast, self.device)


def order_ranks(comm: "MPI.Intracomm | None", slowdown: Sequence[float] | None = None) -> RankOrder:
    """Check the ranks of *comm* and put those of a host next to each other. Collective.

    *comm* None means all ranks of the job. Call it before anything is read, so that a list for
    another number of ranks is refused at once.

    Args:
        slowdown: a factor per rank, where ranks are slowed on purpose.

    Raises:
        HetmpError: on every rank: they were started as several jobs, or *slowdown* is not one
            factor per rank, 1 or more each.
    """
    group = Group(comm)
    with group.together():
        if comm is None:
            check_world(group)
        if slowdown:
            check_slowdown(slowdown, group.size)
    comm, order = arranged(comm, group)
    return RankOrder(comm, Group(comm), order)


def set_up_rank(
    ranks: RankOrder,
    device: str,
    *,
    autocast: Sequence[str] | None = None,
    slowdown: Sequence[float] | None = None,
    seed: int = 0,
) -> RankSetup:
    """Share the cores, choose this rank's device and precision, and seed torch. Collective.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        autocast: one of ``AUTOCASTS``, or one for each rank of *ranks*.
        slowdown: a factor for each rank of *ranks*, checked.
        seed: for torch's generators, the same on every rank.

    Raises:
        HetmpError: on every rank: a device that a rank does not have, or an *autocast* that is
            unknown or for another number of ranks.
    """
    threads = share_cores(ranks.group)
    chosen = choose_device(ranks.group, device)
    torch.manual_seed(seed)
    return RankSetup(
        ranks,
        chosen,
        threads,
        autocast_of(autocast, ranks.group),
        slowdown[ranks.group.rank] if slowdown else 1.0,
    )
