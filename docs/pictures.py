"""Draws the pictures of docs/idea.md: slices.svg, exchanges.svg and staircase.svg.

    .venv/bin/python docs/pictures.py [FOLDER]

They have a background of their own, so that they can be read on a dark page, too.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

RANKS = {"rank 0, a new GPU": 42, "rank 1, an old GPU": 15, "rank 2, a CPU node": 3}
COLOURS = "#4477aa", "#ddaa33", "#bb5566"
INK, PALE = "#222222", "#e6e6e6"

# Milliseconds of a convolution 60 -> n filters of 3x3, batch 100, 32x32, forward and backward, on
# one core with AVX-512, torch 2.13.0, one thread.
FILTERS = 1, 3, 8, 12, 15, 16, 17, 30, 32, 33, 42, 60, 64
NCHW = 37, 37, 38, 65, 66, 38, 59, 61, 87, 84, 114, 146, 133
CHANNELS_LAST = 20, 22, 25, 26, 38, 32, 43, 48, 48, 62, 68, 99, 92


def slices() -> plt.Figure:
    """Who has which of a layer's 60 filters, and what it computes with them."""
    figure, axes = empty(7.6, 3.1, (0, 76), (0, 31))
    text(axes, 9, 28.8, "all input channels", ha="center")
    for row in range(12):
        axes.add_patch(Rectangle((4, 3 + row * 1.85), 10, 1.5, color="#999999"))
    text(axes, 32, 28.8, "60 filters: 42, 15 and 3", ha="center")
    text(axes, 53, 28.8, "60 output channels", ha="center")
    start = 0
    for (rank, count), colour in zip(RANKS.items(), COLOURS, strict=True):
        for filter_ in range(start, start + count):
            x, y = divmod(filter_, 10)
            axes.add_patch(Rectangle((24 + 2.8 * x, 22.6 - 2.1 * y), 2.2, 1.6, color=colour))
        height = 22.2 * count / 60
        top = 25.2 - 22.2 * start / 60
        axes.add_patch(Rectangle((49, top - height), 8, height - 0.2, color=colour))
        text(axes, 58.5, top - height / 2, rank, colour, va="center")
        start += count
    arrow(axes, (15, 14), (22.5, 14))
    arrow(axes, (41.5, 14), (48, 14))
    return figure


def exchanges() -> plt.Figure:
    """One layer after the other, on three ranks, forward and backward."""
    figure, axes = empty(7.6, 4.3, (0, 76), (0, 43))
    for top, title, steps in (
        (40, "forward", ["convolution", "norm, ReLU, pool", "Allgatherv", "convolution"]),
        (18, "backward", ["convolution", "norm, ReLU, pool", "Reduce_scatter", "convolution"]),
    ):
        forward = title == "forward"
        text(axes, 1, top, title, weight="bold", va="center")
        for row, (share, colour) in enumerate(zip((1, 0.62, 0.3), COLOURS, strict=True)):
            y = top - 5.6 - 4.6 * row
            text(axes, 1, y + 1.6, f"rank {row}", colour, va="center")
            for x, step in zip((10, 27, 62), (steps[0], steps[1], steps[3]), strict=True):
                box(axes, x, y + (1 - share) * 1.6, 13, 3.2 * share, colour)
                if row == 0:
                    text(axes, x + 6.5, top - 1.2, step, ha="center", size=8)
            pairs = ((23, 27), (40, 46), (56, 62))
            for a, b in pairs:
                arrow(axes, (a, y + 1.6) if forward else (b, y + 1.6),
                      (b, y + 1.6) if forward else (a, y + 1.6))  # fmt: skip
        box(axes, 46, top - 15, 10, 12.8, PALE)
        text(axes, 51, top - 1.2, steps[2], ha="center", size=8)
        said = "every slice\nto every rank" if forward else "summed, each\nrank its own"
        text(axes, 51, top - 8.6, said, ha="center", va="center", size=8)
    text(axes, 33, 1.2, "slices: nothing moves", ha="center", size=8)
    text(axes, 68.5, 1.2, "needs all channels", ha="center", size=8)
    return figure


def staircase() -> plt.Figure:
    """Time of a layer against the number of its filters."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    axes.plot(FILTERS, NCHW, "o-", color=COLOURS[0], label="NCHW")
    axes.plot(FILTERS, CHANNELS_LAST, "s-", color=COLOURS[1], label="channels_last")
    axes.plot([0, 60], [0, 146], "--", color="#888888", label="in proportion to NCHW's 60 filters")
    axes.annotate("12 filters take\nlonger than 16", (12, 65), (3, 95), size=9,
                  arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    axes.annotate("3 of 60 (5 %)\ntake 22 %", (3, 22), (17, 4), size=9,
                  arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    axes.set(xlabel="filters of the slice", ylabel="ms, forward and backward", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def empty(width: float, height: float, x: tuple[int, int], y: tuple[int, int]) -> tuple:
    """A figure without axes, in units of a tenth of an inch."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=x, ylim=y)
    axes.axis("off")
    return figure, axes


def text(axes: Axes, x: float, y: float, said: str, colour: str = INK, **how: object) -> None:
    """Words at a point."""
    axes.text(x, y, said, color=colour, **{"size": 9, **how})


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    """A filled box with round corners."""
    axes.add_patch(
        FancyBboxPatch((x + 0.3, y), width - 0.6, height, "round,pad=0.3", lw=0, color=colour)
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one point to another."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=INK))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
    matplotlib.rcParams["svg.hashsalt"] = "hetmp"
    for draw in (slices, exchanges, staircase):
        draw().savefig(folder / f"{draw.__name__}.svg", facecolor="white", metadata={"Date": None})
