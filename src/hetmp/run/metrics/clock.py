"""The seconds of a step on every rank, by kind."""

import time

import numpy as np

from hetmp.cluster import AgreedFailure
from hetmp.slicing import SlicedModel

KINDS = ("compute", "exchange", "waiting", "reading")
"""The kinds of a rank's time; reading is before the step."""


class StepClock:
    """A clock that divides the seconds of a step on every rank by kind.

    The rank that enters an exchange last does not wait in it, so the shortest time that any
    rank spent in an exchange is its cost, and what a rank spent beyond that is waiting.
    """

    def __init__(self, model: SlicedModel) -> None:
        self._model, self._runtime = model, model.hetmp
        self._began = 0.0
        self._before: dict[str, float] = {}

    def start(self) -> None:
        """Start a step."""
        self._before = self._runtime.exchange_seconds(self._model)
        self._began = time.perf_counter()

    def stop(
        self, asked: bool = False, reading: float = 0.0, error: str = ""
    ) -> tuple[dict[str, list[float]], bool]:
        """Stop the step's clock and share its seconds with all ranks. Collective.

        The arguments travel with the times, so that agreeing on them costs no message of its own.

        Args:
            asked: whether this rank was asked to end the run.
            reading: seconds that this rank waited for the step's images, before it.
            error: message of a failure on this rank outside the step; empty if there is none.

        Returns:
            (seconds of compute, exchange, waiting and reading by rank, whether any rank was
            asked), the same on every rank.

        Raises:
            AgreedFailure: on every rank, the first error of any rank.
        """
        elapsed = time.perf_counter() - self._began
        group = self._runtime.group
        now = self._runtime.exchange_seconds(self._model)
        # Exchanges around new hooks are made during the step.
        spent = [seconds - self._before.get(name, 0.0) for name, seconds in now.items()]
        own = np.array([*spent, elapsed, reading, float(asked), float(bool(error))])
        by_rank = group.allgather(own)
        if by_rank[:, -1].any():
            raise AgreedFailure(group.broadcast_text(error, root=int(by_rank[:, -1].argmax())))
        exchanges, elapsed_by_rank, any_asked = (
            by_rank[:, :-4],
            by_rank[:, -4],
            by_rank[:, -2].any(),
        )
        cost = exchanges.min(axis=0).sum()
        waited = exchanges.sum(axis=1) - cost
        seconds = {
            "compute": _rounded(elapsed_by_rank - exchanges.sum(axis=1)),
            "exchange": _rounded(np.full(len(by_rank), cost)),
            "waiting": _rounded(waited),
            "reading": _rounded(by_rank[:, -3]),
        }
        return seconds, bool(any_asked)


def _rounded(seconds: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in seconds]
