"""A run's metrics file as a `Run`: its parts, and what of the file could not be read."""

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
    """What was recorded from one start of a run to its end; a resumed run has several.

    Attributes:
        about: None where the file does not say what was run.
        ending: None where it was cut off, or goes on.
    """

    about: RunRecord | None = None
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    layers: Layers | None = None
    memory: Memory | None = None
    ending: Ending | None = None


@dataclass(frozen=True)
class Run:
    """A run as its metrics file tells it.

    Attributes:
        path: of the metrics file.
        label: a short name, not that of another run of the same report.
        parts: in order; one at least.
        unreadable: the numbers of the lines that could not be read, from 1.
        torn: whether the last line is one of them, cut in the middle.
    """

    path: Path
    label: str
    parts: tuple[RunPart, ...]
    unreadable: tuple[int, ...] = ()
    torn: bool = False

    @property
    def steps(self) -> list[StepRecord]:
        """Of all parts."""
        return [step for part in self.parts for step in part.steps]

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """Of all parts."""
        return [evaluation for part in self.parts for evaluation in part.evaluations]

    @property
    def last(self) -> RunPart:
        """The last part that took a step, else the last one: figures by rank are of it."""
        took = [part for part in self.parts if part.steps]
        return (took or list(self.parts))[-1]

    @property
    def about(self) -> RunRecord | None:
        """What the part of ``last`` was."""
        return self.last.about

    @property
    def ending(self) -> Ending | None:
        """How the run ended; None where it was cut off, or goes on."""
        return self.parts[-1].ending


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of folders or metrics files, each with a label of its own.

    Raises:
        HetmpError: a file that is not there, cannot be read, or is something else; a run twice.
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
    """The metrics file of a run's folder, or the file itself.

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
    """The run of a metrics file. Lines that cannot be read are passed over and counted.

    Raises:
        HetmpError: the file cannot be read, is empty, or is no metrics file.
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
    """Add a line to the last of the *parts*, or begin one; whether it was understood."""
    try:
        told = json.loads(line)
        kind = told["kind"]
        if kind not in KINDS:
            return isinstance(kind, str)
        record = KINDS[kind].model_validate(told)
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
    """The folders' names, with as many of those above as tell them apart."""
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
