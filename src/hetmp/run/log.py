"""The log of a run: its metrics files and its progress display."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hetmp.checkpoint import Position
from hetmp.run.metrics import Metrics
from hetmp.run.prepare import Prepared
from hetmp.run.progress import Progress, RunDescription
from hetmp.run.record import headline, keep_settings, run_record


@contextmanager
def open_log(ready: Prepared, step: int) -> Iterator["RunLog"]:
    """Open the metrics and the progress of the run *ready*, and close both in the end.

    Opening is collective, and fails on every rank if rank 0 cannot write.

    Args:
        step: number of steps that the resumed run had taken; 0 for a new run.
    """
    config, held = ready.config, ready.model.hetmp.plan.held
    title = f"{config.model} on {config.data}"
    run = RunDescription(title, held, ready.steps, ready.per_epoch, step)
    with (
        Metrics(ready.group, config.out, config.metrics, after=step) as metrics,
        Progress(ready.group, run, config.view, config.quiet) as progress,
    ):
        yield RunLog(ready, step, metrics, progress)


class RunLog:
    """The metrics and the progress of a run: see ``open_log``."""

    def __init__(self, ready: Prepared, step: int, metrics: Metrics, progress: Progress) -> None:
        self._ready, self._resumed_step = ready, step
        self._metrics, self._progress = metrics, progress

    @property
    def error(self) -> str:
        """Return why this rank can no longer write metrics; empty while it can."""
        return self._metrics.error

    def begin(self, resumed: str) -> None:
        """Record and print what is run; write the files that repeat it. Collective.

        Args:
            resumed: text on the checkpoint it continues from; empty for a new run.
        """
        ready, config = self._ready, self._ready.config
        record = run_record(config, ready.model, ready.plan, ready.places, ready.setup.threads)
        self._metrics.write("run", **record, steps=ready.steps, resumed=self._resumed_step)
        keep_settings(ready.original_config, ready.plan, ready.group)
        begun = headline(config, ready.model, ready.dataset, ready.steps)
        lines = [ready.sharing.decision, begun, resumed]
        self._progress.begin("\n".join(filter(None, lines)))

    def step(
        self,
        step: int,
        epoch: int,
        figures: Mapping[str, float],
        skipped: bool,
        seconds: dict[str, list[float]],
        images: int,
    ) -> None:
        """Record a step.

        Args:
            step: its number, from 0.
            epoch: its epoch, from 0.
            figures: its loss, accuracy and learning rate.
            skipped: whether the weights were left unchanged.
            seconds: by kind and rank.
            images: number of images in the batch.
        """
        more = {"skipped": True} if skipped else {}
        self._metrics.write(
            "step", step=step, epoch=epoch, **figures, seconds=seconds, images=images, **more
        )
        self._progress.step(step + 1, epoch, figures["loss"], figures["accuracy"], images, seconds)

    def records(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Write records, by kind."""
        for kind, record in records.items():
            self._metrics.write(kind, **record)

    def evaluated(self, epoch: int, figures: Mapping[str, float], seconds: float) -> None:
        """Record an evaluation after *epoch*, from 0.

        Args:
            epoch: the epoch that has ended.
            figures: step, loss and accuracy.
            seconds: how long it took.
        """
        self._metrics.write("evaluation", epoch=epoch, **figures, seconds=round(seconds, 6))
        self._progress.evaluated(figures["accuracy"], seconds)

    def note(self, text: str) -> None:
        """Print a note beside the progress."""
        self._progress.note(text)

    def end(self, position: Position, stopped: bool) -> None:
        """Record how the run ended. Collective.

        Raises:
            FailedError: on every rank, if rank 0 could not write the metrics.
        """
        kind, ending = "end", {"steps": position.step, "loss": position.last("loss")}
        if stopped:
            kind = "stopped"
        else:
            ending["accuracy"] = position.accuracy
        self._metrics.write(kind, **ending)
        self._metrics.finish()
