"""Find the terminal that shows a rank's output, and its size.

Under ``mpirun`` a rank's standard output is a pipe, or a terminal that the launcher made for it,
and the launcher forwards the text to its own standard output. So the launcher's output counts.
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
"""Programs that start ranks and forward their output, by their names in the kernel."""

FALLBACK = (80, 24)
"""Columns and lines of a terminal whose size is unknown."""


class Process(NamedTuple):
    """A running program: its number, its name, its parent, and whether it may use its terminal."""

    number: int
    name: str
    parent: int
    background: bool

    @classmethod
    def of(cls, number: int) -> "Process | None":
        """Return the process of a number; None if the system does not show it."""
        try:
            text = Path(f"/proc/{number}/stat").read_text(errors="replace")
        except OSError:
            return None
        name, _, rest = text.partition("(")[2].rpartition(")")
        _state, parent, group, _session, _tty, foreground, *_ = rest.split()
        return cls(number, name, int(parent), int(foreground) not in (-1, int(group)))

    def ancestry(self) -> Iterator["Process"]:
        """Return this process, its parent, and so on."""
        process: Process | None = self
        while process is not None:
            yield process
            process = Process.of(process.parent) if process.parent else None


class Terminal:
    """The terminal that shows this program's output.

    Attributes:
        file: an open file descriptor of it; None if its size cannot be queried.
        errors: whether standard error goes there too.
    """

    def __init__(self, file: int | None, errors: bool = False) -> None:
        self.file, self.errors = file, errors

    def size(self) -> tuple[int, int]:
        """Return the present (columns, lines)."""
        with_environment = tuple(
            int(text) if (text := os.environ.get(name, "")).isdigit() else fallback
            for name, fallback in zip(("COLUMNS", "LINES"), FALLBACK, strict=True)
        )
        columns, lines = with_environment
        try:
            if self.file is not None:
                measured = os.get_terminal_size(self.file)
                columns, lines = measured.columns or columns, measured.lines or lines
        except OSError:  # closed under the running program
            pass
        return columns, lines


def find_terminal(stream: IO[str]) -> Terminal | None:
    """Return the terminal that shows the output to *stream*; None if there is none.

    A program in the background of its terminal has none: its drawing would be in the way.
    """
    try:
        file = stream.fileno()
        mode = os.fstat(file).st_mode
    except (AttributeError, OSError, ValueError):  # no file of the system's
        return None
    own = Process.of(os.getpid())
    if own is None:
        return Terminal(file) if os.isatty(file) else None
    parent = launcher(own)
    if parent is None or file != 1:
        seen = os.isatty(file) and not own.background
        return Terminal(file, _same(f"/proc/self/fd/{file}", "/proc/self/fd/2")) if seen else None
    handed_on = os.isatty(file) or stat.S_ISSOCK(mode) or _is_read_by(own, parent)
    return _of_launcher(parent) if handed_on and not parent.background else None


def launcher(process: Process) -> Process | None:
    """Return the ancestor of *process* that is one of `LAUNCHERS`; None if there is none."""
    return next((ancestor for ancestor in process.ancestry() if ancestor.name in LAUNCHERS), None)


def _is_read_by(own: Process, last: Process) -> bool:
    """Return whether *own*'s output goes through a pipe to one of its ancestors up to *last*.

    Else another program reads it, such as ``tee`` in ``mpirun sh -c 'hetmp train | tee log'``.
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


def _same(path: str, other: str) -> bool:
    return _leads_to(path) == _leads_to(other) != ""


class TerminalConsole(Console):
    """A console that draws in a `Terminal`, wherever the program's own output goes.

    It never hides the cursor: a rank may be killed at any time, and would leave it hidden.
    """

    def __init__(self, terminal: Terminal, stream: IO[str]) -> None:
        super().__init__(file=stream, force_terminal=True, legacy_windows=False, highlight=False)
        self._terminal = terminal

    @property
    def size(self) -> ConsoleDimensions:
        """Return the present size of the terminal."""
        return ConsoleDimensions(*self._terminal.size())

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        raise AttributeError("the size of a terminal cannot be set")

    def show_cursor(self, show: bool = True) -> bool:
        """Ignore the request: the view owns the cursor. Return *show*."""
        return show
