"""``trace``: take some steps, record them on every rank, and write one document."""

import gzip
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hetmp.cluster import clock_offset
from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.run.config import TrainConfig
from hetmp.run.prepare import Prepared, run_prepared
from hetmp.run.versions import present_versions
from hetmp.slicing.recording import Recorder, StepRecording, layer_times
from hetmp.tools.trace.chrome import chrome_trace
from hetmp.tools.trace.rank_part import OnRootsClock, RankPart, rank_part

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Traced:
    """The summary of a trace.

    Attributes:
        ranks: number of ranks that took part.
        clock_error: largest error between the ranks' times, in seconds.
        times: the steps' ``layer_times``; empty on a rank that is left out.
    """

    ranks: int
    clock_error: float
    times: dict[str, Any]


def trace(
    config: TrainConfig,
    path: Path,
    *,
    steps: int = 3,
    skip: int = 2,
    comm: "MPI.Intracomm | None" = None,
) -> Traced:
    """Record *steps* steps of a run after *skip* others, and write them. Collective.

    Nothing of the run is saved. The document goes to *path*, compressed if its name ends in
    ``.gz``.

    Args:
        config: of the run.
        path: of the document.
        steps: how many are recorded.
        skip: how many are taken before.
        comm: the ranks of the job; ``MPI.COMM_WORLD`` if None.

    Returns:
        The same on every rank.

    Raises:
        HetmpError: bad input, or a file that cannot be written, on every rank at once.
    """
    config = config.model_copy(
        update={"steps": skip + steps, "epochs": None, "out": None, "resume": None}
    )

    def run(ready: Prepared) -> Traced:
        return _trace(ready, path, steps, skip)

    waiting = Traced(0, 0.0, {})
    traced, first_member, group = run_prepared(config, comm, run, waiting)
    text = json.dumps([traced.ranks, traced.clock_error, traced.times])
    return Traced(*json.loads(group.broadcast_text(text, first_member)))


def _trace(ready: Prepared, path: Path, steps: int, skip: int) -> Traced:
    """Record on ranks that all take part. Collective."""
    group, model, train_step = ready.group, ready.model, ready.train_step
    recorder = Recorder(model, ready.setup.device)
    model.train()
    batches = _batches(ready)
    for _ in range(skip):
        train_step.take(*next(batches))
        train_step.schedule.step()
    before = time.perf_counter(), clock_offset(group)
    recorded: list[tuple[float, StepRecording]] = []
    for _ in range(steps):
        reading = time.perf_counter()
        images, labels = next(batches)
        into: list[StepRecording] = []
        with recorder.step(into):
            train_step.take(images, labels)
        train_step.schedule.step()
        recorded.append((reading, into[0]))
    batches.close()
    clock = OnRootsClock(before, (time.perf_counter(), clock_offset(group)))
    own = rank_part(recorded, recorder.title, clock)
    parts = [RankPart.model_validate_json(t) for t in group.gather_texts(own.model_dump_json())]
    error = max(part.clock_error for part in parts)
    with group.together():
        if group.is_root:
            extra = _header(ready, error)
            document = chrome_trace(parts, recorder.places, _names(ready), skip, extra)
            _write(path, document)
    times = layer_times(group, recorder, [record for _, record in recorded])
    return Traced(group.size, error, times)


def _batches(ready: Prepared) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """Yield the training batches of one epoch after another. Collective."""
    config, epoch = ready.config, 0
    while True:
        yield from ready.feed.shuffled(
            config.batch_size, seed=config.seed, epoch=epoch, drop_last=config.drop_last
        )
        epoch += 1


def _names(ready: Prepared) -> list[str]:
    """Return names of the ranks for the reader: host, device and share."""
    plan = ready.model.hetmp.plan
    held = np.array(plan.held)
    shares = 100 * held / max(1, held.sum())
    places = [ready.places[rank] for rank in ready.plan.members]
    return [
        f"{place.host}, {place.device}, {share:.0f} % of the {plan.shared}"
        for place, share in zip(places, shares, strict=True)
    ]


def _header(ready: Prepared, error: float) -> dict[str, Any]:
    config = ready.config
    return {
        "model": config.model,
        "data": config.data,
        "batch_size": config.batch_size,
        "ranks": ready.group.size,
        "clock_error_us": round(1e6 * error, 3),
        "versions": present_versions(),
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, separators=(",", ":")).encode()
    try:
        with replacing(path) as beside:
            beside.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    except OSError as error:
        raise HetmpError(f"the trace {path} cannot be written: {error.strerror}") from error
