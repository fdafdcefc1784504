"""A run's steps and evaluations as CSV, for spreadsheets and pandas."""

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hetmp.core.files import replacing
from hetmp.run.metrics.clock import KINDS
from hetmp.run.metrics.json_lines import read_records

STEP = ("step", "epoch", "loss", "accuracy", "lr", "images", "time", "skipped")
EVALUATION = ("step", "epoch", "loss", "accuracy", "time", "seconds")
"""The columns: fields of the records; steps also have a column per kind and rank."""


class CsvTables:
    """Rank 0's ``steps.csv`` and ``evaluations.csv``, written again from ``metrics.jsonl``.

    A cell is empty if a record lacks the field, or its number is not finite.

    Args:
        ranks: number of ranks of this part of the run; an older part may have had more.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        source = folder / "metrics.jsonl"
        before = (record["ranks"] for record in read_records(source) if record["kind"] == "run")
        self._ranks = max(ranks, *before, 0)
        seconds = [f"{kind}_{rank}" for kind in KINDS for rank in range(self._ranks)]
        headings = {"steps": [*STEP, *seconds], "evaluations": EVALUATION}
        places = {name: folder / f"{name}.csv" for name in headings}
        self._writers = {}
        with contextlib.ExitStack() as complete:
            for name, path in places.items():
                beside = complete.enter_context(replacing(path))
                file = complete.enter_context(beside.open("w", newline=""))
                self._writers[name] = csv.writer(file)
                self._writers[name].writerow(headings[name])
            for record in read_records(source):
                self.write(record)
        self._files = [path.open("a", newline="", buffering=1) for path in places.values()]
        self._writers = dict(zip(places, map(csv.writer, self._files), strict=True))

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a row for a record of a step or an evaluation; ignore others."""
        if record["kind"] == "step":
            row = [record.get(name) for name in STEP]
            row[-1] = int(bool(row[-1]))
            for kind in KINDS:
                values: Sequence[float] = record["seconds"].get(kind, ())
                row += [*values, *[None] * (self._ranks - len(values))]
            self._writers["steps"].writerow(row)
        elif record["kind"] == "evaluation":
            self._writers["evaluations"].writerow([record.get(name) for name in EVALUATION])

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
