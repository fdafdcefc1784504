"""The ways to show a run: in a frame that is redrawn, in lines, or not at all."""

import sys
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from hetmp.run.progress.frame import Frame
from hetmp.run.progress.lines import stamped
from hetmp.run.progress.terminal import Terminal, TerminalConsole, find_terminal

DRAWN_SECONDS = 0.2
"""Least seconds between two frames."""

DRAWING_SHARE = 0.01
"""Largest share of the time to spend on drawing."""

SIGN_OF_LIFE_SECONDS = 60.0
"""Seconds without output after which a line is printed."""

EARLY = 1 / 3
"""Where the first lines come sooner: a pause is this part of the time since the display began."""

Shown = TypeVar("Shown", contravariant=True)
"""The state of what is shown, such as ``Standing`` for a run."""


class Drawing(Protocol):
    """A renderable that knows the widths of the lines that it drew last; see ``Frame``."""

    widths: list[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the state for the present size of the terminal."""
        ...


class View(Protocol[Shown]):
    """A display of a run.

    Attributes:
        shows_ranks: whether lines omit what the ranks do: a frame shows it, or nothing does.
    """

    shows_ranks: bool

    def say(self, text: str) -> None:
        """Print lines that stay."""
        ...

    def stands(self, standing: Shown, at_once: bool = False) -> bool:
        """Show the new state of the run; return whether a line on it is due.

        *at_once*: even if the last one is new, because this state may last long.
        """
        ...

    def close(self) -> None:
        """End the display."""
        ...


class Silent:
    """A display that shows nothing."""

    shows_ranks = True

    def say(self, text: str) -> None:
        """Print nothing."""

    def stands(self, standing: object, at_once: bool = False) -> bool:
        """Return False: no line is ever due."""
        return False

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """A display of lines with the time.

    Args:
        clock: the time in seconds, from any moment.
        errors: whether they go to standard error, where standard output is for results.
        pauses: seconds without a line after which one is due: at first, and at most. In between
            they grow with the time since the display began.
    """

    shows_ranks = False

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        errors: bool = False,
        pauses: tuple[float, float] = (SIGN_OF_LIFE_SECONDS, SIGN_OF_LIFE_SECONDS),
    ) -> None:
        self._clock, self._errors, self._pauses = clock, errors, pauses
        self._began = self._said = clock()

    def say(self, text: str) -> None:
        """Print *text*."""
        print(stamped(text), file=sys.stderr if self._errors else sys.stdout, flush=True)
        self._said = self._clock()

    def stands(self, standing: object, at_once: bool = False) -> bool:
        """Return whether no line was printed for long, or one is wanted *at_once*."""
        first, most = self._pauses
        now = self._clock()
        return at_once or now - self._said >= min(most, max(first, EARLY * (now - self._began)))

    def close(self) -> None:
        """Do nothing."""


class Drawn(Generic[Shown]):
    """A display of a frame in a terminal, with lines above it.

    The thread that trains draws it between two steps, never while a rank may be waiting for
    others: the message of a rank that ends the job stays where it was printed.

    Args:
        terminal: in which it is drawn.
        frame: makes the frame of the state that is shown first, and is changed from then on.
    """

    shows_ranks = True

    def __init__(self, terminal: Terminal, frame: Callable[[Shown], Drawing]) -> None:
        self._terminal, self._frame = terminal, frame
        self._console = TerminalConsole(terminal, sys.stdout)
        self._live: _Live | None = None
        self._due = 0.0

    def say(self, text: str) -> None:
        """Print *text* above the frame."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stands(self, standing: Shown, at_once: bool = False) -> bool:
        """Draw the frame, if the last one is old enough; return False: no line is ever due."""
        began = time.perf_counter()
        if at_once or began >= self._due:
            if self._live is None:
                self._live = _Live(self._frame(standing), self._console, self._terminal.errors)
                self._live.start()
            self._live.refresh()
            now = time.perf_counter()
            self._due = now + max(DRAWN_SECONDS, (now - began) / DRAWING_SHARE)
        return False

    def close(self) -> None:
        """Remove the frame; printed lines stay."""
        if self._live is not None:
            self._live.stop()


class _Live(Live):
    """A live frame that is removed correctly even if the terminal became narrower.

    Its lines are then wrapped, and take more room than when they were drawn.
    """

    def __init__(self, frame: Drawing, console: TerminalConsole, errors: bool) -> None:
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
        """Return the renderables, preceded by control codes that remove the last frame."""
        width = max(1, self.console.width)
        wrapped = sum(max(0, -(-drawn // width) - 1) for drawn in self._frame.widths)
        up = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * wrapped
        return [Control(*up), *super().process_renderables(renderables)]


def view_of(
    name: str, quiet: bool, frame: Callable[[Any], Drawing] = Frame, lines: Lines | None = None
) -> View[Any]:
    """Return the view of a name (``auto``, ``live``, ``lines``) for this program's output.

    A terminal that can only be written line by line (``TERM=dumb``) gets lines.

    Args:
        name: of the view.
        quiet: whether nothing is shown at all.
        frame: makes the frame of what is shown.
        lines: the display where no frame can be; None for that of a run.
    """
    if quiet:
        return Silent()
    terminal = None if name == "lines" else find_terminal(sys.stdout)
    if terminal is None and name == "live":
        terminal = Terminal(None)
    if terminal is None or TerminalConsole(terminal, sys.stdout).is_dumb_terminal:
        return lines or Lines()
    return Drawn(terminal, frame)
