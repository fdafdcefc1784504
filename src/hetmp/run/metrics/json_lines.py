"""The records of a run as JSON lines: one object per line, with its ``kind``."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hetmp.core.files import replacing

LAST_PARTS = ("run", "memory")
"""Kinds of records that hold for a part of the run even if some of its steps were lost."""


class JsonLines:
    """Rank 0's ``metrics.jsonl``.

    Args:
        after: number of steps that a resumed run had taken: older records of these steps are
            kept, those of later steps dropped.
    """

    def __init__(self, path: Path, after: int) -> None:
        with replacing(path) as beside, beside.open("w") as file:
            for record in read_records(path) if after else ():
                if _belongs_to_first(after, record):
                    file.write(_line(record))
        self._file = path.open("a", buffering=1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record."""
        self._file.write(_line(record))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a file one by one; skip lines that are not JSON, such as a torn last."""
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
    """Convert *value* for JSON: a number that is not finite becomes None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _belongs_to_first(step: int, record: Mapping[str, Any]) -> bool:
    """Return whether a record belongs to the first *step* steps."""
    kind = record["kind"]
    return (
        kind in LAST_PARTS
        or (kind == "step" and record["step"] < step)
        or (kind == "evaluation" and record["step"] <= step)
        or (kind == "layers" and record["first"] + record["steps"] <= step)
    )
