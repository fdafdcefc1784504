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
    """A picture, and the same in words and figures.

    Attributes:
        name: of its file, without the suffix.
        title: what it shows.
        words: what is to be seen, for who does not see it.
        caption: how it is to be read.
        table: its figures.
        height: inches.
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
        """The picture as SVG and as PNG; the same bytes for the same figures."""
        from matplotlib.figure import Figure

        with look():
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            self.draw(figure)
            return drawn(figure)


@dataclass(frozen=True)
class Missing:
    """Why a run has not one of the pictures, and what would give it.

    Attributes:
        title: of the picture.
        why: a sentence or two; names of flags stand in backticks.
    """

    title: str
    why: str
