"""The progress display of a run."""

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType

from hetmp.cluster import Group
from hetmp.run.progress.lines import epoch_line, step_line, waiting_line
from hetmp.run.progress.status import RunDescription, Seconds, Standing
from hetmp.run.progress.view import Silent, View, view_of


class Progress:
    """The progress display of a run on rank 0; the other ranks are silent.

    Args:
        run: title and size of the run.
        view: ``auto``, ``live`` or ``lines``, as in ``TrainConfig``.
        quiet: whether nothing is shown at all.
    """

    def __init__(
        self, group: Group, run: RunDescription, view: str = "auto", quiet: bool = False
    ) -> None:
        self._standing = Standing(run)
        self._view: View[Standing] = view_of(view, quiet) if group.is_root else Silent()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.close()

    def begin(self, headline: str) -> None:
        """Print the headline and start the clock."""
        self.note(headline)
        self._standing.begin()

    def step(
        self, step: int, epoch: int, loss: float, accuracy: float, images: int, seconds: Seconds
    ) -> None:
        """Show a step that has ended; the arguments are those of ``Standing.took``."""
        self._standing.took(step, epoch, loss, accuracy, images, seconds)
        if self._view.stands(self._standing):
            self._line(step_line(self._standing))

    def evaluated(self, accuracy: float, seconds: float) -> None:
        """Show an evaluation on the test set that took *seconds*."""
        self._standing.evaluated(accuracy, seconds)
        self._line(epoch_line(self._standing))

    def note(self, text: str) -> None:
        """Print a note beside the progress."""
        if text:
            self._view.say(text)

    def _line(self, text: str) -> None:
        ranks = "" if self._view.shows_ranks else waiting_line(self._standing.recent_by_rank())
        self._view.say("  ".join(filter(None, [text, ranks])))


@contextlib.contextmanager
def silent(quiet: bool) -> Iterator[None]:
    """Print nothing but errors inside the context, if *quiet*."""
    with contextlib.ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
