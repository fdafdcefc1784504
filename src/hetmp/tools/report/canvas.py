"""How the pictures look, and how one is drawn: as SVG for the page and as PNG for a file.

Text, axes and grid are drawn in ``INK``, which the page replaces by the colour of its text, so
that a picture follows a light or dark page. Series have the colours of Okabe and Ito, which people
who confuse colours can tell apart, and a pattern each.
"""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from hetmp.core.colors import BLUE, GREEN, GREY, ORANGE, PURPLE, SERIES, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Colour of text and axes: black in a PNG, replaced by the page's own colour there."""

WIDTH = 8.9
"""Inches; a figure is drawn as wide as the page's column, so its text is of the page's size."""

DPI = 150

LETTER = 0.075
"""Approximate width of a letter in inches."""

FEW_RANKS = 12
"""Most ranks with a colour and a pattern each; more get shades."""

ROWS = 40
"""Most bars that can be told apart; more become an area."""


class Paint(NamedTuple):
    """The look of a series."""

    color: str
    hatch: str = ""
    dash: Any = "-"
    mark: str = ""


PARTS = {
    "compute": Paint(BLUE),
    "forward": Paint(SKY),
    "backward": Paint(BLUE),
    "exchange": Paint(ORANGE, "////"),
    "waiting": Paint(GREY, "\\\\\\\\"),
    "reading": Paint(PURPLE, "xxxx"),
    "other": Paint(PURPLE, "||||"),
    "parameters": Paint(BLUE),
    "gradients": Paint(SKY, "////"),
    "optimizer": Paint(GREEN, "\\\\\\\\"),
    "activations": Paint(ORANGE, "xxxx"),
}
"""The look of the parts of a step's time, and of a rank's memory."""

_HATCHES = "", "////", "||||", "\\\\\\\\", "xxxx", "----"  # lines: dots take much room in SVG
_DASHES = "-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)), (0, (3, 3))


def series(number: int) -> Paint:
    """Return the look of a run or rank by its number: 36 different ones, then again."""
    turn, place = divmod(number, len(SERIES))
    hatch = _HATCHES[(place + turn) % len(_HATCHES)]
    return Paint(SERIES[place], hatch, _DASHES[(place + turn) % len(_DASHES)])


def of_ranks(count: int) -> list[Paint]:
    """Return the looks of *count* ranks; many go from dark to light, in rank order."""
    if count <= FEW_RANKS:
        return [series(number) for number in range(count)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [Paint(to_hex(colormaps["cividis"](i / (count - 1)))) for i in range(count)]


@contextmanager
def look() -> Iterator[None]:
    """Use hetmp's settings of matplotlib inside the context, whatever the user's own are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.edgecolor": INK,
                "axes.grid.axis": "both",
                "axes.labelcolor": INK,
                "axes.labelsize": 9,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlecolor": INK,
                "axes.titlelocation": "left",
                "axes.titlesize": 9,
                "figure.facecolor": "white",
                "font.family": "DejaVu Sans",
                "font.size": 9,
                "grid.alpha": 0.18,
                "grid.color": INK,
                "grid.linewidth": 0.7,
                "hatch.linewidth": 0.7,
                "legend.fontsize": 9,
                "legend.frameon": False,
                "legend.handlelength": 2.2,
                "legend.labelcolor": INK,
                "svg.fonttype": "none",
                "svg.hashsalt": "hetmp",
                "text.color": INK,
                "text.parse_math": False,  # a name may have a $ in it
                "xtick.color": INK,
                "xtick.labelsize": 8.5,
                "ytick.color": INK,
                "ytick.labelsize": 8.5,
            }
        )
        yield


def drawn(figure: "Figure") -> tuple[str, bytes]:
    """Draw a figure as (SVG with transparent background, PNG on white)."""
    as_text, as_bytes = io.StringIO(), io.BytesIO()
    log = logging.getLogger("matplotlib.font_manager")
    level, log.level = log.level, logging.ERROR  # a name in a script that the font does not have
    try:
        figure.savefig(as_text, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(as_bytes, format="png", dpi=DPI, facecolor="white")
    finally:
        log.level = level
    return as_text.getvalue(), as_bytes.getvalue()


def legend(
    figure: "Figure",
    paints: Sequence[tuple[str, Paint]],
    lines: bool = False,
    upright: Sequence[str] = (),
) -> None:
    """Draw a legend above the axes, in as many rows as needed.

    Args:
        figure: on which it is drawn.
        paints: names and looks.
        lines: show lines instead of areas.
        upright: names of vertical marks in the colour of the text.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D(
            [],
            [],
            color=paint.color,
            linestyle=paint.dash,
            linewidth=1.8,
            marker=paint.mark,
            markersize=4.5,
        )
        if lines
        else Patch(facecolor=paint.color, hatch=paint.hatch, edgecolor="#ffffff", linewidth=0)
        for _, paint in paints
    ]
    handles += [
        Line2D([], [], color=INK, linestyle="", marker="|", markersize=11, markeredgewidth=2.2)
        for _ in upright
    ]
    names = [*(name for name, _ in paints), *upright]
    widths = [LETTER * len(name) + 0.5 for name in names]
    columns = len(names) if sum(widths) < WIDTH else max(1, int(WIDTH / max(widths)))
    # A label that begins with an underscore would be left out, so the names are set afterwards.
    placed = figure.legend(
        handles,
        [str(number) for number in range(len(names))],
        loc="outside upper left",
        ncols=columns,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    for text, name in zip(placed.get_texts(), names, strict=True):
        text.set_text(name)


def stacked(
    axes: "Axes",
    labels: Sequence[str],
    values: Sequence[tuple[Paint, Sequence[float]]],
    along: str,
    across: str,
) -> None:
    """Draw a stacked bar for each label, from the top down; areas if there are many.

    Args:
        axes: on which they are drawn.
        labels: of the bars.
        values: look and values, one per label, of each part.
        along: name of the values, with the unit.
        across: name of the labels, if there are too many to write each.
    """
    import numpy as np

    count = len(labels)
    places = np.arange(count)
    before = np.zeros(count)
    for paint, sizes in values:
        width = np.nan_to_num(np.asarray(sizes, dtype=float))
        style: Any = {"facecolor": paint.color, "hatch": paint.hatch, "edgecolor": "#ffffff"}
        if count <= ROWS:
            axes.barh(places, width, left=before, height=0.72, linewidth=0, **style)
        else:
            axes.fill_between(
                np.append(places, count) - 0.5,
                np.append(before, before[-1]),
                np.append(before + width, before[-1] + width[-1]),
                step="post",
                linewidth=0,
                **style,
            )
        before = before + width
    if count <= ROWS:
        names(axes, labels)
        axes.set_xlabel(along)
        axes.set_xlim(0, (before.max() or 1.0) * 1.02)
        axes.grid(axis="x")
    else:
        axes.set_xlabel(across)
        axes.set_ylabel(along, rotation_mode="anchor")
        numbers = [label.removeprefix(f"{across} ") for label in labels]
        axes.xaxis.set_major_formatter(lambda x, _: dict(enumerate(numbers)).get(round(x), ""))
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(0, (before.max() or 1.0) * 1.02)
        axes.grid(axis="y")
    axes.set_axisbelow(True)


def names(axes: "Axes", labels: Sequence[str]) -> None:
    """Write a name beside each bar, from the top down."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def height(rows: int) -> float:
    """Return the height in inches of a picture with *rows* bars."""
    return 1.25 + 0.27 * rows if rows <= ROWS else 3.6
