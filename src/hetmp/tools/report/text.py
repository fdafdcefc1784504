"""Format figures and tables, for the page and the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hetmp.core.text import NONE, digits, trimmed

NAME_LENGTH = 34
"""Most characters of a name in a picture; tables have the whole name."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell names its row.

    Attributes:
        words: number of columns from the left with words; the others have figures.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    @property
    def long(self) -> bool:
        """Return whether it is too long to be printed beside its picture."""
        return len(self.rows) > 24


def seconds_text(seconds: float) -> str:
    """Format seconds: ``0.83 ms``, ``120 ms``, ``1.5 s``, ``4 min 10 s``.

    >>> seconds_text(0.00083), seconds_text(0.12), seconds_text(1.5), seconds_text(250.0)
    ('0.83 ms', '120 ms', '1.5 s', '4 min 10 s')
    """
    if not math.isfinite(seconds):
        return NONE
    if seconds < 0.9995:
        return f"{trimmed(1e3 * seconds)} ms"
    if seconds < 99.5:
        return f"{trimmed(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def milliseconds(seconds: float) -> str:
    """Format seconds as a bare number, for a column in ms.

    >>> milliseconds(0.0123456), milliseconds(2.5)
    ('12.3', '2,500')
    """
    return digits(1e3 * seconds)


def size_unit(size: float) -> tuple[float, str]:
    """Return (divisor, unit) for an axis up to *size* bytes.

    >>> size_unit(500.0), size_unit(5e6)
    ((1024.0, 'KiB'), (1048576.0, 'MiB'))
    """
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if size >= 2 * 1024.0**power:
            return 1024.0**power, unit
    return 1024.0, "KiB"


def percent(share: float) -> str:
    """Format a share from 0 to 1: ``71 %``, ``4.2 %``, ``0.3 %``.

    >>> percent(0.714), percent(0.042), percent(0.0), percent(1e-5), percent(1.0)
    ('71 %', '4.2 %', '0 %', '<0.1 %', '100 %')
    """
    if not math.isfinite(share):
        return NONE
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def short(name: str, most: int = NAME_LENGTH) -> str:
    """Shorten a name to *most* characters by cutting its middle.

    >>> short("features.conv1"), short("a" * 20 + "b" * 20, 11)
    ('features.conv1', 'aaaaa…bbbbb')
    """
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[-half:]}"


def listed(names: Sequence[object]) -> str:
    """Join names: ``0``, ``0 and 1``, ``0, 1 and 2``.

    >>> listed([0]), listed([0, 1, 2])
    ('0', '0, 1 and 2')
    """
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def ranges(numbers: Sequence[int]) -> str:
    """Format whole numbers with neighbours joined.

    >>> ranges([0, 1, 2, 5, 7, 8]), ranges([])
    ('0 to 2, 5, 7, 8', '')
    """
    parts: list[str] = []
    numbers = sorted(numbers)
    while numbers:
        length = 1
        while length < len(numbers) and numbers[length] == numbers[0] + length:
            length += 1
        if length > 2:
            parts.append(f"{numbers[0]} to {numbers[length - 1]}")
        else:
            parts += map(str, numbers[:length])
        numbers = numbers[length:]
    return ", ".join(parts)
