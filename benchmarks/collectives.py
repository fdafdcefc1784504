"""How fast this MPI library moves a tensor in unequal shares: the choice of a default MPI.

    mpirun -n 3 python benchmarks/collectives.py

prints, for three sizes, the median milliseconds of the three collectives that exchanges use.
Each is timed after a barrier; compare libraries by running them in turn, more than once.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hetmp.core.partition import apportion

REPEATS = 15
MIB = (24, 3, 0.1)
WEIGHTS = (70, 25, 5, 3, 2)


def median_ms(comm: Any, call: Callable[[], None]) -> float:
    """The median time of a collective on this rank."""
    taken = []
    for _ in range(REPEATS):
        comm.Barrier()
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken)


def main() -> None:
    """Time every collective at every size; rank 0 prints its own medians."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    weights = [WEIGHTS[rank % len(WEIGHTS)] for rank in range(comm.size)]
    if comm.rank == 0:
        print(MPI.Get_library_version().splitlines()[0], f"{comm.size} ranks")
        print(f"{'MiB':>6} {'Allgatherv':>12} {'Reduce_scatter':>15} {'Allreduce':>12}   ms")
    for mib in MIB:
        total = int(mib * 2**20 / 4)
        counts = list(apportion(total, weights).counts)
        whole, other = np.ones(total, np.float32), np.empty(total, np.float32)
        mine = np.ones(counts[comm.rank], np.float32)
        times = (
            median_ms(comm, lambda: comm.Allgatherv(mine, [other, counts])),  # noqa: B023
            median_ms(comm, lambda: comm.Reduce_scatter(whole, mine, counts)),  # noqa: B023
            median_ms(comm, lambda: comm.Allreduce(whole, other)),  # noqa: B023
        )
        if comm.rank == 0:
            print(f"{mib:6} {times[0]:12.2f} {times[1]:15.2f} {times[2]:12.2f}")


if __name__ == "__main__":
    main()
