"""Write a run's records in all requested formats."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from hetmp.cluster import Group
from hetmp.core.errors import FailedError
from hetmp.run.metrics.csv_tables import CsvTables
from hetmp.run.metrics.json_lines import JsonLines, plain
from hetmp.run.metrics.tensorboard import Events, check_tensorboard

TIMED = ("step", "evaluation", "end", "stopped")
"""Kinds of records with a ``time``."""


class MetricsWriter(Protocol):
    """A writer of records in one format."""

    def write(self, record: dict[str, Any]) -> None:
        """Add one record; leave out what the format cannot hold."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def check_formats(formats: Sequence[str] | None) -> None:
    """Refuse formats that cannot be written here.

    Raises:
        HetmpError: a package is missing.
    """
    if "tensorboard" in (formats or ()):
        check_tensorboard()


class Metrics:
    """The metrics files of a run. Only rank 0 writes, and only if there is a folder.

    Opening is collective over *group*, and fails on every rank if rank 0 cannot write. If rank 0
    cannot write later, it sets ``error``, which ``StepClock.stop`` passes on to the others.

    Args:
        folder: folder for ``metrics.jsonl``, and the files of more *formats* (``csv``,
            ``tensorboard``).
        after: number of steps that a resumed run had taken: older records of these steps are
            kept, those of later steps dropped.

    Attributes:
        error: why this rank can no longer write; empty while it can.
    """

    def __init__(
        self,
        group: Group,
        folder: Path | None,
        formats: Sequence[str] | None = None,
        after: int = 0,
    ) -> None:
        self._group, self._folder = group, folder
        self._writers: list[MetricsWriter] = []
        self.error = ""
        with group.together():
            if group.is_root and folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                makers: dict[str, Callable[[], MetricsWriter]] = {
                    "csv": lambda: CsvTables(folder, group.size),
                    "tensorboard": lambda: Events(folder, after),
                }
                self._writers.append(JsonLines(folder / "metrics.jsonl", after))
                self._writers += [makers[name]() for name in makers if name in (formats or ())]

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A failure was reported at the last write, or in ``finish``.
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.close()

    def write(self, kind: str, **record: Any) -> None:
        """Add one record of a kind."""
        if not self._writers or self.error:
            return
        if kind in TIMED:
            record["time"] = round(time.time(), 3)
        self._try(lambda writer: writer.write(plain({"kind": kind, **record})))

    def finish(self) -> None:
        """Close the files and check that everything was written. Collective.

        Raises:
            FailedError: on every rank, if rank 0 could not write it.
        """
        self._try(lambda writer: writer.close())
        with self._group.together():
            if self.error:
                raise FailedError(self.error)

    def _try(self, work: Callable[[MetricsWriter], None]) -> None:
        try:
            for writer in self._writers:
                work(writer)
        except OSError as error:
            self.error = self.error or (
                f"the metrics in {self._folder} cannot be written: {error.strerror or error}: free "
                "space there, or give another --out"
            )
