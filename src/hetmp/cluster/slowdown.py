"""Slows a rank down on purpose: a test aid for unequal devices on one machine.

A rank slowed by 3 sleeps two seconds for every second that it computed. It does so where it is
about to meet other ranks, so the others see a rank that is three times as slow; time in exchanges
is not stretched. CPU time is what counts, not wall time: ranks that share cores would else be
slowed for waiting for each other.
"""

import math
import time
from collections.abc import Callable, Sequence

from hetmp.core.errors import HetmpError

ASKING_SECONDS = 0.05
"""Seconds between a sleeping rank's calls of ``enough``."""


class Slowdown:
    """How many times slower a rank behaves than it is.

    Attributes:
        enough: called at every exchange, and during sleep; the rank stops sleeping once it is true.
        slept: seconds of sleep so far.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.enough: Callable[[], bool] | None = None
        self.slept = 0.0
        self.factor = factor

    @property
    def factor(self) -> float:
        """How many times slower; work done before it is set is not stretched."""
        return self._factor

    @factor.setter
    def factor(self, factor: float) -> None:
        self._factor = factor
        self._mark = time.thread_time()

    def worked(self) -> None:
        """Sleep for the work done since the last exchange; called when an exchange begins."""
        awake = self.enough is not None and self.enough()
        if self.factor > 1:
            computed = time.thread_time() - self._mark
            began = time.monotonic()
            ends = began + (self.factor - 1) * max(0.0, computed)
            while not awake and (left := ends - time.monotonic()) > 0:
                time.sleep(left if self.enough is None else min(left, ASKING_SECONDS))
                awake = self.enough is not None and self.enough()
            self.slept += time.monotonic() - began
            self._mark = time.thread_time()

    def resume(self) -> None:
        """Restart the measurement after an exchange, whose own time does not count."""
        if self.factor > 1:
            self._mark = time.thread_time()


def check_slowdown(slowdown: Sequence[float], ranks: int | None = None) -> None:
    """Refuse factors that no rank can be slowed by, or that are not one per rank of *ranks*.

    Raises:
        HetmpError: naming the first wrong one.
    """
    for rank, factor in enumerate(slowdown):
        if not (math.isfinite(factor) and factor >= 1):
            raise HetmpError(
                f"slowdown {factor} of rank {rank} is below 1 (full speed) or not finite: give "
                "one per rank, 1 or more each"
            )
    if ranks is not None and len(slowdown) != ranks:
        raise HetmpError(f"{len(slowdown)} slowdowns for {ranks} ranks: give one per rank")
