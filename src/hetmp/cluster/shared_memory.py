"""Memory that the ranks of one host share."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hetmp.cluster.mpi import mpi

if TYPE_CHECKING:
    from mpi4py import MPI


class SharedMemory:
    """Memory that the ranks of one host share, an MPI-3 shared window held by its first rank.

    What a rank wrote is seen by the others after ``publish()``, a barrier, and ``publish()`` there.

    Attributes:
        bytes: the memory, the same on every rank.
    """

    def __init__(self, comm: "MPI.Intracomm", size: int) -> None:
        self._window = mpi().Win.Allocate_shared(size if comm.rank == 0 else 0, 1, comm=comm)
        self._window.Lock_all()  # an epoch for Sync, never left
        memory, _ = self._window.Shared_query(0)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8)[:size]

    def publish(self) -> None:
        """Order this rank's reads and writes before and after this call."""
        self._window.Sync()
