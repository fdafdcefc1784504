"""Programs in a terminal of their own, and what its screen then shows."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

CONTROL = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")
PATIENCE = 120


class Terminal:
    """A program in a terminal of so many columns and lines, which controls it."""

    def __init__(self, command, columns=80, lines=24, **options):
        self._own, theirs = pty.openpty()
        self.resize(columns, lines)
        self.printed = ""
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options,
        )  # fmt: skip
        os.close(theirs)

    def resize(self, columns, lines):
        """Make the terminal's window another size."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, size)

    def read_until(self, words):
        """Wait for *words*, between which there may be control codes."""
        deadline = time.monotonic() + PATIENCE
        while words not in plain(self.printed):
            assert time.monotonic() < deadline, plain(self.printed[-5000:])
            assert self._read(), f"ended without {words!r}: {plain(self.printed)}"

    def read_to_the_end(self):
        """All that the program prints, and how it ended."""
        deadline = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < deadline, self.printed
        return self.printed, self.process.wait(PATIENCE)

    def _read(self):
        ready, _, _ = select.select([self._own], [], [], 1)
        if not ready:
            return True
        try:
            told = os.read(self._own, 1 << 16)
        except OSError:  # nobody has the terminal open any more
            return False
        self.printed += told.decode(errors="replace")
        return bool(told)

    def close(self):
        """End what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        os.close(self._own)


def plain(printed):
    """What is printed, without control codes."""
    return CONTROL.sub("", printed)


def screen(printed):
    """The lines that a terminal shows in the end, and (line, column) of its cursor.

    Of the control codes it knows those that move up, and those that erase a line; lines are never
    wrapped.
    """
    lines, line, column, place = [[]], 0, 0, 0
    while place < len(printed):
        code = CONTROL.match(printed, place)
        if code:
            place = code.end()
            if code[2] == "A":
                line = max(0, line - int(code[1] or 1))
            elif code[2] == "K":
                lines[line] = []
            else:
                assert code[2] == "m", f"unknown code {code[0]!r}"
            continue
        character, place = printed[place], place + 1
        if character == "\r":
            column = 0
        elif character == "\n":
            line += 1
            if line == len(lines):
                lines.append([])
        else:
            lines[line] += [" "] * (column + 1 - len(lines[line]))
            lines[line][column] = character
            column += 1
    return ["".join(told).rstrip() for told in lines], (line, column)


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
"""What a line of progress begins with where there is no terminal."""
