"""A run's records as TensorBoard events."""

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hetmp.core.errors import HetmpError

PREFIX = "events.out.tfevents"
"""Prefix of the names of event files, which TensorBoard looks for."""


def check_tensorboard() -> None:
    """Refuse to continue without the package tensorboard.

    Raises:
        HetmpError: it is missing, with the way to install it.
    """
    try:
        import tensorboard  # noqa: F401
        from tensorboard.compat.proto import event_pb2  # noqa: F401
    except ImportError as error:
        raise HetmpError(
            f"metrics tensorboard needs the package tensorboard ({error}): install "
            "hetmp[tensorboard], or leave tensorboard out of --metrics"
        ) from error


class Events:
    """Rank 0's event files in ``tensorboard/``: a new one for each part of the run.

    The step of an event is the number of steps taken. Events are written at once by the thread
    that trains: TensorBoard's own writer has a thread whose failures cannot be caught.

    Args:
        after: number of steps that a resumed run had taken: TensorBoard drops events of later
            steps in older files. A new run removes older files.
    """

    def __init__(self, folder: Path, after: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._tensor = event_pb2, summary_pb2, tensor_pb2
        own = folder / "tensorboard"
        own.mkdir(exist_ok=True)
        older = sorted(own.glob(f"{PREFIX}.*"))
        if not after:
            for path in older:
                path.unlink()
        # TensorBoard reads the files by name, in which the second comes first: two of a second
        # are told apart by a number behind it.
        now = max(int(time.time()), *(_second(path) + 1 for path in older), 0)
        name = f"{PREFIX}.{now:010}.{platform.node()}.{os.getpid()}"
        self._file = (own / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._add(now, file_version="brain.Event:2")
        if after:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(now, step=after + 1, session_log=start)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the figures of a record."""
        values = [
            self._summary.Summary.Value(tag=tag, simple_value=value)
            for tag, value in _scalars(record)
            if value is not None
        ]
        if record["kind"] == "run":
            values.append(self._text("config", _settings(record["config"])))
        if values:
            steps = record.get("resumed", record.get("step", 0)) + (record["kind"] == "step")
            summary = self._summary.Summary(value=values)
            self._add(record.get("time", time.time()), step=steps, summary=summary)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, seconds: float, **event: Any) -> None:
        made = self._event.Event(wall_time=seconds, **event)
        self._writer.write(made.SerializeToString())
        self._file.flush()

    def _text(self, tag: str, text: str) -> Any:
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        return self._summary.Summary.Value(
            tag=tag,
            metadata=self._summary.SummaryMetadata(plugin_data=plugin),
            tensor=self._tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
        )


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Return (name of a curve, new value) for the curves that a record extends."""
    if record["kind"] == "step":
        for name in ("loss", "accuracy", "lr"):
            yield name, record[name]
        seconds: Mapping[str, list[float]] = record["seconds"]
        longest = max(map(sum, zip(*seconds.values(), strict=True)))
        yield "images_per_second", record["images"] / longest if longest else None
        for kind, by_rank in seconds.items():
            for rank, spent in enumerate(by_rank):
                yield f"{kind}/rank_{rank}", spent
        if record.get("skipped"):
            yield "skipped", 1.0
    elif record["kind"] == "evaluation":
        for name in ("loss", "accuracy", "seconds"):
            yield f"test/{name}", record[name]


def _settings(config: Mapping[str, Any]) -> str:
    """Return the settings as a block of code in Markdown."""
    lines = (f"    {name} = {json.dumps(v)}" for name, v in config.items() if v is not None)
    return "\n".join(lines)


def _second(path: Path) -> int:
    number = path.name.removeprefix(f"{PREFIX}.").split(".")[0]
    return int(number) if number.isdigit() else 0
