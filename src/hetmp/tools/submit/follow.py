"""Follow a job from the login node: its state, and the records of its run."""

import json
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hetmp.cluster.slurm import called
from hetmp.core.errors import HetmpError
from hetmp.tools.submit.script import Submitted

POLL_SECONDS = 2.0
"""Seconds between queries to Slurm: short enough to watch, long enough for its controller."""

LOG_LINES = 15
"""Last lines of a failed job's log to show."""

UNANSWERED = 150
"""Queries in a row that Slurm may leave unanswered: controllers are restarted, too."""

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED"}
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
}  # fmt: skip


_RUN = b'{"kind": "run"'


class RecordTail:
    """A reader of new records of a metrics file, even if a resumed run replaces the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._run = b""
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the records since the last call; of a replaced file, the added ones."""
        try:
            with self._path.open("rb") as file:
                content = file.read()
                number = os.fstat(file.fileno()).st_ino
        except OSError:  # not there yet
            return
        whole = content.rfind(b"\n") + 1
        if self._file is not None and number != self._file:
            # The new file repeats the records up to the checkpoint, then continues with a `run`
            # record, which may not be there yet.
            self._read = max(0, content.rfind(_RUN))
            if self._run and content[self._read :].startswith(self._run):
                self._read = whole
        self._file = number
        added, self._read = content[self._read : whole], max(self._read, whole)
        for line in added.splitlines(keepends=True):
            if line.startswith(_RUN):
                self._run = line
            yield json.loads(line)


def job_state(number: int) -> tuple[str, str]:
    """Return (state, reason or nodes) of a job; ``("", "")`` if Slurm has forgotten it.

    Raises:
        HetmpError: Slurm does not answer.
    """
    try:
        shown = called("scontrol", "show", "job", "--oneliner", str(number))
    except HetmpError as error:
        if "Invalid job id" in str(error):
            return "", ""
        raise
    # A line for each component of a heterogeneous job; it waits and runs as one.
    components = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in shown.splitlines() if line]
    state = components[0].get("JobState", "")
    if state in WAITING:
        return state, components[0].get("Reason", "")
    return state, ",".join(component.get("NodeList", "") for component in components)


def follow(job: Submitted, console: Console | None = None) -> str:
    """Show a job's progress until it ends; return its last state, as Slurm calls it.

    A run is shown as a bar on a terminal, elsewhere as a line per evaluation; another job by its
    log.

    Raises:
        HetmpError: Slurm gives no answer for minutes.
    """
    console = console or Console()
    records = RecordTail(job.run / "metrics.jsonl") if job.run else None
    last, state, unanswered = ("", ""), "", 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=None, visible=False)
        while True:
            try:
                now, unanswered = job_state(job.number), 0
            except HetmpError:
                unanswered += 1
                if unanswered > UNANSWERED:
                    raise
                now = last
            for record in records.new() if records else ():
                _show(record, progress, bar)
            if now != last:
                console.print(_state_text(job, *now), highlight=False)
                last = now
            state = now[0] or state
            if not unanswered and (not now[0] or now[0] in ENDED):
                break
            time.sleep(POLL_SECONDS)
    failed = state not in ("COMPLETED", "")
    if (failed or job.run is None) and job.log.is_file():
        console.print(f"the end of {job.log}:" if failed else f"{job.log}:")
        lines = job.log.read_text(errors="replace").splitlines()
        shown = lines[-LOG_LINES:] if failed else lines
        console.print("\n".join(shown), markup=False, highlight=False, soft_wrap=True)
    return state


def _state_text(job: Submitted, state: str, more: str) -> str:
    if state in WAITING:
        why = "" if more in ("", "None", "(null)") else f" ({more})"
        return f"job {job.number} waits{why}"
    if state == "RUNNING":
        return f"job {job.number} runs on {more}; log: {job.log}"
    return f"job {job.number}: {state.lower().replace('_', ' ') or 'forgotten by Slurm'}"


def _show(record: dict[str, Any], progress: Progress, bar: Any) -> None:
    say = progress.console.print
    if record["kind"] == "run":
        progress.update(bar, total=record.get("steps"), completed=record["resumed"], visible=True)
        say(
            f"{record['config']['model']} on {record['config']['data']}, {record['ranks']} "
            f"rank{'s' * (record['ranks'] != 1)}"
            + (f", resumed after step {record['resumed']}" if record["resumed"] else ""),
            highlight=False,
        )
    elif record["kind"] == "step":
        progress.update(bar, completed=record["step"] + 1, description=_loss(record))
    elif record["kind"] == "evaluation":
        say(
            f"epoch {record['epoch'] + 1:3}  step {record['step']:5}  "
            f"test {100 * record['accuracy']:5.2f} %, {_loss(record)}",
            highlight=False,
        )
    elif record["kind"] == "stopped":
        say(f"stopped after step {record['steps']}, before the time is up", highlight=False)


def _loss(record: dict[str, Any]) -> str:
    loss = record["loss"]  # null where it is not finite
    return f"loss {math.nan if loss is None else loss:.4f}"
