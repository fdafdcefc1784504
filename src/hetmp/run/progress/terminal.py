"""Where what a rank prints is seen: in which terminal, and how large that is.

Under ``mpirun`` a rank's standard output is a pipe, or a terminal that the launcher made for it,
and the launcher hands the text on to its own standard output. So it is that one which counts.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console, ConsoleDimensions

LAUNCHERS = frozenset(
    {"mpirun", "mpiexec", "mpiexec.hydra", "mpiexec.gforker", "prterun", "orterun"}
)
"""Programs that start ranks and hand on what they print, by the names that the kernel keeps."""

FALLBACK = (80, 24)
"""Columns and lines of a terminal that does not say."""


class Process(NamedTuple):
    """A running program: its number, its name, its parent, and whether it may use its terminal."""

    number: int
    name: str
    parent: int
    background: bool

    @classmethod
    def of(cls, number: int) -> "Process | None":
        """The one of this number; None if the system does not tell."""
        try:
            told = Path(f"/proc/{number}/stat").read_text(errors="replace")
        except OSError:
            return None
        name, _, rest = told.partition("(")[2].rpartition(")")
        _state, parent, group, _session, _tty, foreground, *_ = rest.split()
        return cls(number, name, int(parent), int(foreground) not in (-1, int(group)))

    def ancestry(self) -> Iterator["Process"]:
        """This one, its parent, and so on."""
        found: Process | None = self
        while found is not None:
            yield found
            found = Process.of(found.parent) if found.parent else None


class Terminal:
    """The terminal where this program's output is seen.

    Attributes:
        file: an open file descriptor of it; None where its size cannot be asked for.
        errors: whether the errors are seen there, too.
    """

    def __init__(self, file: int | None, errors: bool = False) -> None:
        self.file, self.errors = file, errors

    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        with_environment = tuple(
            int(told) if (told := os.environ.get(name, "")).isdigit() else fallback
            for name, fallback in zip(("COLUMNS", "LINES"), FALLBACK, strict=True)
        )
        columns, lines = with_environment
        try:
            if self.file is not None:
                found = os.get_terminal_size(self.file)
                columns, lines = found.columns or columns, found.lines or lines
        except OSError:  # closed under the running program
            pass
        return columns, lines


def find_terminal(stream: IO[str]) -> Terminal | None:
    """The terminal where what is written to *stream* is seen; None if it is seen in none.

    A program in the background of its terminal has none: what it draws would be in the way.
    """
    try:
        file = stream.fileno()
        mode = os.fstat(file).st_mode
    except (AttributeError, OSError, ValueError):  # no file of the system's
        return None
    own = Process.of(os.getpid())
    if own is None:
        return Terminal(file) if os.isatty(file) else None
    found = launcher(own)
    if found is None or file != 1:
        seen = os.isatty(file) and not own.background
        return Terminal(file, _same(f"/proc/self/fd/{file}", "/proc/self/fd/2")) if seen else None
    handed_on = os.isatty(file) or stat.S_ISSOCK(mode) or _is_read_by(own, found)
    return _of_launcher(found) if handed_on and not found.background else None


def launcher(process: Process) -> Process | None:
    """What started a rank on this host; None if nothing of `LAUNCHERS` did."""
    return next((found for found in process.ancestry() if found.name in LAUNCHERS), None)


def _is_read_by(own: Process, last: Process) -> bool:
    """Whether what *own* prints goes down a pipe to one of its parents up to *last*.

    Else another program reads it, such as the ``tee`` of ``mpirun sh -c 'hetmp train | tee log'``.
    """
    pipe = _leads_to("/proc/self/fd/1")
    if not pipe.startswith("pipe:"):
        return False
    for parent in own.ancestry():
        folder = Path(f"/proc/{parent.number}/fd")
        try:
            files = list(folder.iterdir())
        except OSError:  # another user's, who cannot be a reader of ours
            files = []
        if parent != own and any(_leads_to(str(file)) == pipe for file in files):
            return True
        if parent == last:
            break
    return False


def _of_launcher(process: Process) -> Terminal | None:
    path = f"/proc/{process.number}/fd/1"
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return None
        file = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not os.isatty(file):
        os.close(file)
        return None
    return Terminal(file, _same(path, f"/proc/{process.number}/fd/2"))


def _leads_to(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _same(one: str, other: str) -> bool:
    return _leads_to(one) == _leads_to(other) != ""


class TerminalConsole(Console):
    """A console that draws in a `Terminal`, whatever the program's own output is.

    It never hides the cursor: a rank may be killed at any time, and would leave it hidden.
    """

    def __init__(self, terminal: Terminal, stream: IO[str]) -> None:
        super().__init__(file=stream, force_terminal=True, legacy_windows=False, highlight=False)
        self._terminal = terminal

    @property
    def size(self) -> ConsoleDimensions:
        """Of the terminal, as it is now."""
        return ConsoleDimensions(*self._terminal.size())

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        raise AttributeError("the size of a terminal cannot be set")

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing; whether that is what was asked for."""
        return show
