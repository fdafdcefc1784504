"""The progress display of a bench: a line redrawn in a terminal, else lines with the time."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from hetmp.run.progress.bars import ASCII, BLOCKS, done_bar
from hetmp.run.progress.lines import clock_text
from hetmp.run.progress.view import Lines, Silent, View, view_of

WARM_UP = 3
"""Turns that do not count."""

PAUSES = (3.0, 30.0)
"""Seconds between two lines where there is no terminal: at first, and at most."""

LONG = 1.0
"""Seconds of a place in the first turn from which on each of the others is shown at once."""

LEAST_BAR, WIDEST = 4, 110
"""Columns: of the shortest bar, and the most of the whole line."""


class Timetable:
    """Which variant is prepared or timed, and how long the turns take.

    Attributes:
        repeats: turns to time, after those of the warm-up.
        limit: seconds after which no turn begins, counted from here on; None for no limit.
        preparing: the variant that is prepared; None once turns are taken.
        turn: the present one, from 0, those of the warm-up included.
        variant: the one that has its place in the turn.
        last_place: seconds of the place that ended last; infinite before the first.

    Args:
        clock: the time in seconds, from any moment.
    """

    def __init__(
        self,
        repeats: int,
        limit: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.repeats, self.limit, self._clock = repeats, limit, clock
        self.preparing: str | None = None
        self.turn, self.variant = 0, ""
        self.last_place = math.inf
        self._began = self._turns_began = self._place_began = clock()
        self._places: dict[str, list[float]] = {}

    def start(self, variants: Sequence[str]) -> None:
        """Begin with the turns, in each of which every one of *variants* has a place."""
        self.preparing = None
        self._places = {name: [] for name in variants}
        self._turns_began = self._clock()

    def begin(self, turn: int, variant: str) -> None:
        """Note that *variant* begins in *turn*."""
        self.turn, self.variant, self._place_began = turn, variant, self._clock()

    def end(self, step_seconds: float) -> None:
        """Note that its place in the turn has ended; its timed step took *step_seconds*."""
        passed = self.last_place = self._clock() - self._place_began
        if self.turn == 0:
            # Two steps: much is made ready in the very first one, which is no measure of others.
            passed = min(passed, 2 * step_seconds)
        self._places[self.variant].append(passed)

    @property
    def elapsed(self) -> float:
        """Return the seconds since the bench began."""
        return self._clock() - self._began

    @property
    def timed(self) -> int:
        """Return the number of turns that were timed."""
        return max(0, min(map(len, self._places.values()), default=0) - WARM_UP)

    def expected(self, variant: str) -> float | None:
        """Return the seconds that the place of *variant* in a turn takes; None if unknown."""
        places = self._places[variant]
        # As soon as there are others, without the first.
        return statistics.fmean(places[1:] or places) if places else None

    def until(self, turns: int) -> float | None:
        """Estimate the seconds until so many *turns* have ended; None in the first turn."""
        places = {name: self.expected(name) for name in self._places}
        seconds = [each for each in places.values() if each is not None]
        if len(seconds) < len(places) or not places:
            return None
        open_places = (name for name in places if len(self._places[name]) <= self.turn)
        return sum(places[name] or 0.0 for name in open_places) + sum(seconds) * max(
            0, turns - self.turn - 1
        )

    @property
    def left(self) -> float | None:
        """Estimate the seconds until the last turn has ended; None in the first turn."""
        turns = WARM_UP + self.repeats
        whole, rest = self.until(turns), self.until(self.turn + 1)
        if whole is None or rest is None or self.limit is None:
            return whole
        each = sum(self.expected(name) or 0.0 for name in self._places)
        further = max(0, math.ceil((self.limit - self.elapsed - rest) / max(1e-9, each)))
        return min(whole, rest + further * each)

    @property
    def share(self) -> float:
        """Return which part of the time of all turns has passed, from 0 to 1."""
        passed, left = self._clock() - self._turns_began, self.left
        return 0.0 if left is None else passed / max(1e-9, passed + left)

    def texts(self) -> tuple[str, str]:
        """Return what is done now, and how far the bench is."""
        if self.preparing is not None:
            return f"preparing {self.preparing}", ""
        doing, far = "timing", f"{self.timed} of {self.repeats} turns done"
        if self.turn < WARM_UP:
            doing, far = "warming up", f"turn {self.turn + 1} of {WARM_UP}"
        left = self.left
        return f"{doing} {self.variant}", far if left is None else f"{far}, {clock_text(left)} left"


class TurnFrame:
    """A renderable that draws a timetable in one line, and an empty one for the cursor.

    Attributes:
        widths: of the line drawn last.
    """

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._label = 0
        self.widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        doing, far = self._timetable.texts()
        width = max(1, min(options.max_width, WIDEST) - 1)  # a full line would be wrapped by some
        self._label = max(self._label, len(doing))  # so that the bar keeps its place
        room = width - self._label - len(far) - 4
        text = Text(f"{doing}  {far}".rstrip())
        if far and room >= LEAST_BAR:
            bar = done_bar(self._timetable.share, room, ASCII if options.ascii_only else BLOCKS)
            text = Text.assemble(f"{doing:<{self._label}}  ", bar, f"  {far}")
        text.truncate(width)
        drawn = console.render_lines(text, options.update(width=width), pad=False)
        self.widths = [Segment.get_line_length(line) for line in drawn]
        for line in drawn:
            yield from line
            yield Segment.line()
        yield Segment.line()


class TurnProgress:
    """Shows a timetable; silent where the view is."""

    def __init__(self, timetable: Timetable, view: View[Timetable]) -> None:
        self.timetable, self._view = timetable, view

    def __enter__(self) -> "TurnProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._view.close()

    def prepare(self, variant: str) -> None:
        """Show that a variant is prepared."""
        self.timetable.preparing = variant
        self._show(at_once=True)

    def begin(self, turn: int, variant: str) -> None:
        """Show that a variant begins in a turn, from 0."""
        first_estimate = (self.timetable.turn, turn) == (0, 1)
        self.timetable.begin(turn, variant)
        self._show(at_once=first_estimate or (turn == 0 and self.timetable.last_place >= LONG))

    def _show(self, at_once: bool) -> None:
        if self._view.stands(self.timetable, at_once):
            self._view.say(", ".join(filter(None, self.timetable.texts())))


def silent_view() -> View[Timetable]:
    """Return a view that shows nothing."""
    return Silent()


def turn_view(clock: Callable[[], float] = time.monotonic) -> View[Any]:
    """Return the view of a bench for this program: a redrawn line, or lines to standard error."""
    lines = Lines(clock, errors=True, pauses=PAUSES)
    return view_of("auto", False, TurnFrame, lines)
