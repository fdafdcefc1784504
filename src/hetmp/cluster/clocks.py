"""The offsets between the ranks' clocks, measured by messages."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hetmp.cluster.group import Group

ROUNDS = 50
"""Round trips with each rank; the quickest one is used."""


class ClockOffset(NamedTuple):
    """Seconds by which this rank's clock is ahead of rank 0's, and a bound on the error."""

    seconds: float
    error: float


def clock_offset(group: Group, clock: Callable[[], float] = time.perf_counter) -> ClockOffset:
    """Measure this rank's clock against rank 0's. Collective over *group*.

    Rank 0 asks every other rank for its time. The answer was given between question and answer,
    so half of the quickest round trip bounds the error (Cristian, 1989: Probabilistic clock
    synchronization).
    """
    comm = group.control
    own, asked = np.zeros(1), np.zeros(1)
    offsets = np.zeros((group.size, 2))
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
            offsets[other] = offset, trip / 2
        elif group.rank == other:
            for _ in range(ROUNDS):
                comm.Recv(asked, source=0)
                own[0] = clock()
                comm.Send(own, dest=0)
    return ClockOffset(*map(float, group.broadcast(offsets)[group.rank]))
