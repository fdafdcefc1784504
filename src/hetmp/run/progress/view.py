"""How a run is seen: in a frame that is drawn again and again, in lines, or not at all."""

import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import ConsoleRenderable
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from hetmp.run.progress.frame import Frame
from hetmp.run.progress.lines import stamped
from hetmp.run.progress.status import Standing
from hetmp.run.progress.terminal import Terminal, TerminalConsole, find_terminal

DRAWN_SECONDS = 0.2
"""How long a frame stays at least."""

DRAWING_SHARE = 0.01
"""The most of the time that is spent on drawing."""

SIGN_OF_LIFE_SECONDS = 60.0
"""After how long without one a line is printed."""


class View(Protocol):
    """Shows a run.

    Attributes:
        shows_ranks: whether what each rank does is seen beside the lines, or not at all.
    """

    shows_ranks: bool

    def say(self, text: str) -> None:
        """Show lines that stay."""
        ...

    def stands(self, standing: Standing) -> bool:
        """The run has come further; whether a line on it is due."""
        ...

    def close(self) -> None:
        """Nothing more is shown."""
        ...


class Silent:
    """Shows nothing."""

    shows_ranks = True

    def say(self, text: str) -> None:
        """Nothing is shown."""

    def stands(self, standing: Standing) -> bool:
        """No line is ever due."""
        return False

    def close(self) -> None:
        """Nothing was shown."""


class Lines:
    """Prints lines with the time.

    Args:
        clock: the time in seconds, from any moment.
    """

    shows_ranks = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said = clock()

    def say(self, text: str) -> None:
        """Print *text*."""
        print(stamped(text), flush=True)
        self._said = self._clock()

    def stands(self, standing: Standing) -> bool:
        """Whether there was no line for long."""
        return self._clock() - self._said >= SIGN_OF_LIFE_SECONDS

    def close(self) -> None:
        """All is printed."""


class Drawn:
    """Draws a frame in a terminal, and what is said above it.

    It is drawn by the thread that trains, between two steps, and never while a rank may be
    waiting for others: what one of them says before it ends the job stays where it was printed.
    """

    shows_ranks = True

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._console = TerminalConsole(terminal, sys.stdout)
        self._live: _Live | None = None
        self._due = 0.0

    def say(self, text: str) -> None:
        """Print *text* above the frame."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stands(self, standing: Standing) -> bool:
        """Draw the frame, if the last one is old enough; a line is never due."""
        began = time.perf_counter()
        if began >= self._due:
            if self._live is None:
                self._live = _Live(Frame(standing), self._console, self._terminal.errors)
                self._live.start()
            self._live.refresh()
            now = time.perf_counter()
            self._due = now + max(DRAWN_SECONDS, (now - began) / DRAWING_SHARE)
        return False

    def close(self) -> None:
        """Take the frame away; what was said stays."""
        if self._live is not None:
            self._live.stop()


class _Live(Live):
    """A frame that also goes when the terminal has become narrower in the meantime.

    Its lines are then wrapped, and take more room than they did when they were drawn.
    """

    def __init__(self, frame: Frame, console: TerminalConsole, errors: bool) -> None:
        super().__init__(
            frame,
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=errors,
            vertical_overflow="visible",
        )
        self._frame = frame

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is printed, with what takes the last frame away before it, and the next behind."""
        width = max(1, self.console.width)
        wrapped = sum(max(0, -(-drawn // width) - 1) for drawn in self._frame.widths)
        up = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * wrapped
        return [Control(*up), *super().process_renderables(renderables)]


def view_of(name: str, quiet: bool) -> View:
    """The view of this *name* (``auto``, ``live``, ``lines``) for what this program prints.

    A terminal that can only be written to line by line (``TERM=dumb``) has lines.
    """
    if quiet:
        return Silent()
    terminal = None if name == "lines" else find_terminal(sys.stdout)
    if terminal is None and name == "live":
        terminal = Terminal(None)
    if terminal is None or TerminalConsole(terminal, sys.stdout).is_dumb_terminal:
        return Lines()
    return Drawn(terminal)
