"""Bars and curves of characters, which can be told apart without colours."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from hetmp.run.metrics import KINDS

COLOURS = dict(zip(KINDS, ("green", "yellow", "red", "magenta"), strict=True))


@dataclass(frozen=True)
class Glyphs:
    """The characters of the drawings.

    Attributes:
        kinds: for compute, exchange, waiting and reading.
        done, open: for the done part of a bar, and the rest.
        heights: for the heights of a curve, the lowest first.
    """

    kinds: str
    done: str
    open: str
    heights: str


BLOCKS = Glyphs("█▒·▚", "━", "─", "▁▂▃▄▅▆▇█")
ASCII = Glyphs("#=.~", "=", "-", "_.-^")


def apart(parts: Sequence[float], width: int) -> list[int]:
    """Divide *width* characters in proportion to *parts*, which are not all 0.

    >>> apart([3, 1, 0], 6)
    [5, 1, 0]
    """
    whole = sum(parts)
    bounds = [0.0]
    for part in parts:
        bounds.append(bounds[-1] + part)
    ends = [math.floor(width * bound / whole + 0.5) for bound in bounds]
    return [end - begin for begin, end in itertools.pairwise(ends)]


def spent_bar(seconds: Sequence[float], longest: float, width: int, glyphs: Glyphs) -> Text:
    """Draw a rank's time as a bar with a part per kind.

    Args:
        seconds: by kind, in the order of ``KINDS``.
        longest: the seconds for which the bar is *width* characters.
        width: characters of the longest bar.
        glyphs: the characters to draw with.
    """
    bar = Text()
    rest = max(0.0, longest - sum(seconds))
    if longest > 0:
        *counts, _ = apart([*seconds, rest], width)
        for kind, glyph, count in zip(KINDS, glyphs.kinds, counts, strict=True):
            bar.append(glyph * count, COLOURS[kind])
    return bar


def done_bar(done: float, width: int, glyphs: Glyphs) -> Text:
    """Draw a bar of which *done*, from 0 to 1, is filled.

    It is *width* characters long, of those of *glyphs*.
    """
    count = min(width, math.floor(width * done))
    return Text.assemble((glyphs.done * count, "cyan"), (glyphs.open * (width - count), "dim"))


def curve(points: Sequence[float], width: int, glyphs: Glyphs) -> str:
    """Draw *points* as heights, averaged if they are many; logarithmic if all are above 0.

    It is at most *width* characters long, of those of *glyphs*.
    """
    count = min(len(points), width)
    if count < 2:
        return ""
    bounds = [len(points) * place // count for place in range(count + 1)]
    means = [sum(points[b:e]) / (e - b) for b, e in itertools.pairwise(bounds)]
    if min(means) > 0:
        means = [math.log(point) for point in means]
    low, high = min(means), max(means)
    top = len(glyphs.heights) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(glyphs.heights[round(scale * (point - low))] for point in means)
