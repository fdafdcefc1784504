"""One picture of a report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hetmp.tools.report.canvas import WIDTH, drawn, look
from hetmp.tools.report.text import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A picture, with its content in words and figures.

    Attributes:
        name: name of its file, without the suffix.
        title: its title.
        words: its content, for readers who do not see it.
        caption: how to read it.
        table: its figures.
        height: its height in inches.
        draw: draws it into an empty figure.
    """

    name: str
    title: str
    words: str
    caption: str
    table: Table
    height: float
    draw: Callable[["Figure"], None]

    def drawn(self) -> tuple[str, bytes]:
        """Draw the picture as (SVG, PNG); the same figures give the same bytes."""
        from matplotlib.figure import Figure

        with look():
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(figure)
            return drawn(figure)


@dataclass(frozen=True)
class Missing:
    """A picture that a run lacks.

    Attributes:
        title: title of the picture.
        why: the reason and how to get the picture, with flags in backticks.
    """

    title: str
    why: str
