"""Which ranks share a host, and how they share its devices and cores."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hetmp.cluster.group import Group
from hetmp.cluster.mpi import mpi

if TYPE_CHECKING:
    from mpi4py import MPI


def local_sharing(group: Group, what: str) -> tuple[int, int]:
    """Return (number, count) of this rank among its host's ranks that name the same *what*.

    Collective. For ranks that share devices or cores: *what* names the set they were given.
    """
    local = group.control.Split_type(mpi().COMM_TYPE_SHARED)
    marks = np.empty(local.Get_size(), dtype=np.int64)
    local.Allgather(np.array([zlib.crc32(what.encode())], dtype=np.int64), marks)
    same = marks == marks[local.Get_rank()]
    number = int(same[: local.Get_rank()].sum())
    local.Free()
    return number, int(same.sum())


def hosts(group: Group) -> tuple[int, ...]:
    """Return, for each rank, the first rank on the same host. Collective."""
    local = group.control.Split_type(mpi().COMM_TYPE_SHARED, key=group.rank)
    first = np.array([group.rank])
    local.Bcast(first, root=0)
    local.Free()
    return tuple(group.allgather(first).ravel().tolist())


def side_by_side(first_on_host: Sequence[int]) -> tuple[int, ...]:
    """Order the ranks so that those of a host are neighbours.

    >>> side_by_side((0, 1, 0, 1))  # dealt out to two hosts in turns
    (0, 2, 1, 3)
    """
    return tuple(sorted(range(len(first_on_host)), key=lambda rank: (first_on_host[rank], rank)))


def arranged(
    comm: "MPI.Intracomm | None", group: Group
) -> "tuple[MPI.Intracomm | None, tuple[int, ...]]":
    """Reorder *comm* so that the ranks of a host are neighbours. Collective over its *group*.

    Slices of neighbours are neighbours in every gathered value, so a ring of ranks goes from host
    to host once instead of with every slice. Rank 0 stays rank 0.

    Returns:
        The communicator, *comm* itself where it is in order, and which rank of *group* each of
        its ranks is.
    """
    order = side_by_side(hosts(group))
    if order == tuple(range(group.size)):
        return comm, order
    return group.part(order), order
