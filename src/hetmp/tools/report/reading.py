"""Read a run's metrics file into a `Run`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path
from hetmp.tools.report.records import (
    KINDS,
    Ending,
    EvaluationRecord,
    Layers,
    Memory,
    RunRecord,
    StepRecord,
)

NAME = "metrics.jsonl"


@dataclass
class RunPart:
    """The records from one start of a run to its end; a resumed run has several parts.

    Attributes:
        record: the ``run`` record; None if the file has none.
        ending: None if the run was cut off, or is still going.
    """

    record: RunRecord | None = None
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    layers: Layers | None = None
    memory: Memory | None = None
    ending: Ending | None = None


@dataclass(frozen=True)
class Run:
    """The records of a run's metrics file.

    Attributes:
        path: the metrics file.
        label: a short name, unique within a report.
        parts: the parts in order; at least one.
        unreadable: numbers of the lines that could not be read, from 1.
        torn: whether the last line is one of them, cut in the middle.
    """

    path: Path
    label: str
    parts: tuple[RunPart, ...]
    unreadable: tuple[int, ...] = ()
    torn: bool = False

    @property
    def steps(self) -> list[StepRecord]:
        """Return the steps of all parts."""
        return [step for part in self.parts for step in part.steps]

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """Return the evaluations of all parts."""
        return [evaluation for part in self.parts for evaluation in part.evaluations]

    @property
    def last(self) -> RunPart:
        """Return the last part that took a step, else the last one; figures by rank are its."""
        took = [part for part in self.parts if part.steps]
        return (took or list(self.parts))[-1]

    @property
    def record(self) -> RunRecord | None:
        """Return the ``run`` record of ``last``."""
        return self.last.record

    @property
    def ending(self) -> Ending | None:
        """Return the last record; None if the run was cut off, or is still going."""
        return self.parts[-1].ending


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs of folders or metrics files, each with a unique label.

    Raises:
        HetmpError: a file is missing, unreadable or something else; or a run is given twice.
    """
    files = [metrics_file(path) for path in paths]
    seen: dict[Path, Path] = {}
    for path, file in zip(paths, files, strict=True):
        if file.resolve() in seen:
            raise HetmpError(f"{path} and {seen[file.resolve()]} are the same run: give it once")
        seen[file.resolve()] = path
    labels = _labels(files)
    return [read_run(file, label) for file, label in zip(files, labels, strict=True)]


def metrics_file(path: Path) -> Path:
    """Return the metrics file of a run's folder, or *path* itself if it is a file.

    Raises:
        HetmpError: there is none.
    """
    if not path.exists():
        raise HetmpError(
            f"{path} does not exist{near_path(path)}: give the folder of a run (its --out), or its "
            f"{NAME}"
        )
    if not path.is_dir():
        return path
    if not (path / NAME).is_file():
        raise HetmpError(
            f"{path} has no {NAME}: it is not the folder of a run, or the run has not begun; "
            "'hetmp train --out FOLDER' writes one"
        )
    return path / NAME


def read_run(path: Path, label: str = "") -> Run:
    """Read the run of a metrics file. Lines that cannot be read are skipped and noted.

    Raises:
        HetmpError: the file cannot be read, is empty, or is not a metrics file.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise HetmpError(f"{path} cannot be read: {error.strerror or error}") from None
    lines = text.splitlines()
    if not any(line.strip() for line in lines):
        raise HetmpError(f"{path} is empty: the run ended before it recorded anything")
    parts: list[RunPart] = [RunPart()]
    unreadable: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not _take(line, parts):
            unreadable.append(number)
    if len(unreadable) == sum(1 for line in lines if line.strip()):
        what = "torn in its first line" if len(lines) == 1 and lines[0].startswith('{"kind"') else (
            "not a metrics file of hetmp"
        )  # fmt: skip
        raise HetmpError(
            f"{path} is {what}: a report needs the {NAME} that 'hetmp train --out FOLDER' writes"
        )
    if parts[0] == RunPart() and len(parts) > 1:
        del parts[0]
    torn = bool(unreadable) and unreadable[-1] == len(lines) and not text.endswith("\n")
    return Run(path, label or _name(path), tuple(parts), tuple(unreadable), torn)


def _take(line: str, parts: list[RunPart]) -> bool:
    """Add a line to the last of the *parts*, or begin one; return whether it was understood."""
    try:
        fields = json.loads(line)
        kind = fields["kind"]
        if kind not in KINDS:
            return isinstance(kind, str)
        record = KINDS[kind].model_validate(fields)
    except (ValueError, ValidationError, TypeError, KeyError, RecursionError):
        return False
    part = parts[-1]
    if isinstance(record, RunRecord):
        parts.append(RunPart(record))
    elif isinstance(record, StepRecord):
        part.steps.append(record)
    elif isinstance(record, EvaluationRecord):
        part.evaluations.append(record)
    elif isinstance(record, Layers):
        part.layers = record
    elif isinstance(record, Memory):
        part.memory = record
    elif isinstance(record, Ending):
        part.ending = record
    return True


def _name(path: Path) -> str:
    path = path.absolute()
    return path.parent.name if path.name == NAME else path.stem


def _labels(files: Sequence[Path]) -> list[str]:
    """Return the folders' names, with as many parent folders as make them unique."""
    whole = [file.absolute() for file in files]
    folders = [file.parent if file.name == NAME else file.with_suffix("") for file in whole]
    labels = []
    for folder in folders:
        depth = 1
        while depth < len(folder.parts) and any(
            other != folder and other.parts[-depth:] == folder.parts[-depth:] for other in folders
        ):
            depth += 1
        labels.append("/".join(folder.parts[-depth:]))
    return labels
