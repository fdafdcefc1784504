"""How the ranks' clocks differ, measured by messages."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hetmp.cluster.group import Group

ROUNDS = 50
"""Messages there and back with each rank: the quickest one tells best."""


class ClockOffset(NamedTuple):
    """What this rank's clock shows more than rank 0's, in seconds, and how far that may be off."""

    seconds: float
    error: float


def clock_offset(group: Group, clock: Callable[[], float] = time.perf_counter) -> ClockOffset:
    """This rank's clock against rank 0's. Collective over *group*.

    Rank 0 asks every other rank for its time. The answer was given between question and answer,
    so half of the quickest round trip bounds the error (Cristian, 1989: Probabilistic clock
    synchronization).
    """
    comm = group.control
    own, asked = np.zeros(1), np.zeros(1)
    found = np.zeros((group.size, 2))
    for other in range(1, group.size):
        if group.is_root:
            trips = []
            for _ in range(ROUNDS):
                began = clock()
                comm.Send(asked, dest=other)
                comm.Recv(own, source=other)
                ended = clock()
                trips.append((ended - began, own[0] - (began + ended) / 2))
            trip, offset = min(trips)
            found[other] = offset, trip / 2
        elif group.rank == other:
            for _ in range(ROUNDS):
                comm.Recv(asked, source=0)
                own[0] = clock()
                comm.Send(own, dest=0)
    return ClockOffset(*map(float, group.broadcast(found)[group.rank]))
