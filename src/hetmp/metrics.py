"""What a run records: a JSON-lines file, one object per step, evaluation and run.

Records have a ``kind``: ``run`` (first line), ``step``, ``evaluation``, and ``end`` or ``stopped``.
"""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from hetmp.comm import Group
from hetmp.slicing import SlicedModel


class StepClock:
    """Where the seconds of a step went, on every rank.

    The rank that enters an exchange last does not wait in it, so the shortest time that any
    rank spent in an exchange is its cost, and what a rank spent beyond that is waiting.
    """

    def __init__(self, model: SlicedModel) -> None:
        self._model, self._runtime = model, model.hetmp
        self._began = 0.0
        self._before = np.zeros(0)

    def start(self) -> None:
        """A step begins."""
        self._before = np.array(self._runtime.exchange_seconds(self._model))
        self._began = time.perf_counter()

    def stop(
        self, asked: bool = False, reading: float = 0.0
    ) -> tuple[dict[str, list[float]], bool]:
        """What became of the step, on every rank the same. Collective.

        Args:
            reading: seconds that this rank waited for the step's images, before it.
            asked: whether this rank was asked to end the run. It is told along with the times, so
                that agreeing on it costs no message of its own.

        Returns:
            Seconds of compute, exchange, waiting and reading, by rank; whether any rank was asked.
        """
        elapsed = time.perf_counter() - self._began
        spent = np.array(self._runtime.exchange_seconds(self._model)) - self._before
        told = self._runtime.group.allgather(np.array([*spent, elapsed, reading, float(asked)]))
        exchanges, elapsed_by_rank, any_asked = told[:, :-3], told[:, -3], told[:, -1].any()
        cost = exchanges.min(axis=0).sum()
        waited = exchanges.sum(axis=1) - cost
        seconds = {
            "compute": _rounded(elapsed_by_rank - exchanges.sum(axis=1)),
            "exchange": _rounded(np.full(len(told), cost)),
            "waiting": _rounded(waited),
            "reading": _rounded(told[:, -2]),
        }
        return seconds, bool(any_asked)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """What JSON has words for: a number that is not finite is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


def _rounded(seconds: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in seconds]


class MetricsFile:
    """Rank 0's metrics file; on other ranks, and without a path, it writes nothing.

    Opening is collective over *group*, and fails on every rank if rank 0 cannot write.

    Args:
        after: how many steps a resumed run has taken: what an older file tells of them is kept,
            and what it tells of later ones, which were lost, is not.
    """

    def __init__(self, group: Group, path: Path | None, after: int = 0) -> None:
        self._file: IO[str] | None = None
        with group.together():
            if group.is_root and path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = _told_until(path, after) if after else []
                beside = path.with_name(f".{path.name}.part")
                beside.write_text("".join(kept))
                beside.replace(path)
                self._file = path.open("a", buffering=1)

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, kind: str, **record: Any) -> None:
        """Add one record."""
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **_plain(record)}) + "\n")


def _told_until(path: Path, step: int) -> list[str]:
    """The lines of a metrics file that tell of the first *step* steps."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the last one, torn
            continue
        early = record["kind"] == "step" and record["step"] < step
        if record["kind"] == "run" or early or (
            record["kind"] == "evaluation" and record["step"] <= step
        ):  # fmt: skip
            kept.append(line)
    return kept
