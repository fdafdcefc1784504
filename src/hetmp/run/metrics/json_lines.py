"""The records of a run as JSON lines: one object per line, which say what they are by ``kind``."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hetmp.core.files import replacing

LAST_PARTS = ("run", "memory")
"""Kinds of what stays true of a part of the run, however many of its steps were lost."""


class JsonLines:
    """Rank 0's ``metrics.jsonl``.

    Args:
        after: how many steps a resumed run has taken: what an older file tells of them is kept,
            and what it tells of later ones, which were lost, is not.
    """

    def __init__(self, path: Path, after: int) -> None:
        with replacing(path) as beside, beside.open("w") as file:
            for record in read_records(path) if after else ():
                if _is_told_until(after, record):
                    file.write(_line(record))
        self._file = path.open("a", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record."""
        self._file.write(_line(record))

    def close(self) -> None:
        """No record comes any more."""
        self._file.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, one after the other; a torn last one is passed over."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            yield record


def plain(value: Any) -> Any:
    """*value* in what JSON has words for: a number that is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _is_told_until(step: int, record: Mapping[str, Any]) -> bool:
    """Whether a record tells of the first *step* steps."""
    kind = record["kind"]
    return (
        kind in LAST_PARTS
        or (kind == "step" and record["step"] < step)
        or (kind == "evaluation" and record["step"] <= step)
        or (kind == "layers" and record["first"] + record["steps"] <= step)
    )
