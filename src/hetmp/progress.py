"""What a person sees while a run goes on: a bar in a terminal, a line per epoch elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hetmp.comm import Group


class Progress:
    """Progress of a run on rank 0; the other ranks are silent.

    Throughput and time left are of the training steps; evaluation is not counted.

    Args:
        steps: of the whole run.
        before: how many of them were taken before this run was resumed.
    """

    def __init__(self, group: Group, steps: int, before: int = 0) -> None:
        self._root = group.is_root
        self._steps, self._before = steps, before
        self._images, self._taken, self._seconds, self._last = 0, before, 0.0, 0.0
        self._loss = float("nan")
        self._bar: Bar | None = None
        if self._root and sys.stdout.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self._task = self._bar.add_task("training", total=steps, completed=before, speed="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, headline: str) -> None:
        """The first step is about to run."""
        self._say(headline)
        self._last = time.perf_counter()

    def step(self, step: int, epoch: int, loss: float, images: int) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._seconds += now - self._last
        self._last = now
        self._images += images
        self._taken, self._loss = step, loss
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=step,
                description=f"epoch {epoch + 1}  loss {loss:.4f}",
                speed=f"{self._images / self._seconds:.0f} images/s",
            )

    def evaluated(self, epoch: int, accuracy: float) -> None:
        """An evaluation over the test set has ended."""
        per_step = self._seconds / max(1, self._taken - self._before)
        left = per_step * (self._steps - self._taken)
        self._say(
            f"epoch {epoch + 1:3}  step {self._taken:5}/{self._steps}  loss {self._loss:.4f}  "
            f"test {100 * accuracy:5.2f} %  "
            f"{self._images / max(1e-9, self._seconds):6.0f} images/s  {_clock(left)} left"
        )
        self._last = time.perf_counter()

    def note(self, text: str) -> None:
        """Say something beside the progress."""
        if text:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self._root:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )
