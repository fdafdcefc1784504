"""Groups without real communication: one process without MPI, and one rank of a rehearsal."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.cluster.group import Group
from hetmp.cluster.mpi import mpi
from hetmp.cluster.recorder import ExchangeRecorder
from hetmp.cluster.slowdown import Slowdown


class LoneGroup(Group):
    """One process without MPI, for commands that run on a login node."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.recorder = ExchangeRecorder(0, 1)

    def allgather(self, values: npt.NDArray[Any], value: str = "") -> npt.NDArray[Any]:
        """Return the one rank's *values*, stacked."""
        return np.ascontiguousarray(values)[None]

    def broadcast(self, values: npt.NDArray[Any], root: int = 0) -> npt.NDArray[Any]:
        """Return the one rank's *values*."""
        return values


class RehearsalGroup(Group):
    """One rank of a group whose other ranks do not exist: exchanges reach no one.

    For measuring what a rank would have to do. Nothing that is computed with it is right.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(mpi().COMM_SELF)
        self.rank, self.size = rank, size
        self.on_one_host, self.rehearsing = False, True
        self.slowdown = Slowdown()

    def allgather(self, values: npt.NDArray[Any], value: str = "") -> npt.NDArray[Any]:
        """Return this rank's *values* once for every rank."""
        return np.stack([np.ascontiguousarray(values)] * self.size)

    def broadcast(self, values: npt.NDArray[Any], root: int = 0) -> npt.NDArray[Any]:
        """Return this rank's own *values*."""
        return values
