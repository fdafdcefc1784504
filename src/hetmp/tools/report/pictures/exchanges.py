"""The bytes of each exchange."""

from typing import TYPE_CHECKING

import numpy as np

from hetmp.core.colors import BLUE, ORANGE
from hetmp.core.text import NONE, bytes_text, trimmed
from hetmp.tools.report.canvas import Paint, height, legend, stacked
from hetmp.tools.report.measures import bytes_received
from hetmp.tools.report.pictures.layers import NOT_WATCHED
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.records import WatchedExchange
from hetmp.tools.report.text import Table, milliseconds, percent, short, size_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Bytes by exchange"

DRAWN = 24
"""Most places to draw: those with the most bytes."""

DIRECTIONS = {"forward": Paint(BLUE), "backward": Paint(ORANGE, "////")}


def exchanges(part: RunPart) -> Picture | Missing:
    """Picture the bytes that all ranks receive in a step, by the layer after the exchange."""
    if part.layers is None:
        return Missing(TITLE, NOT_WATCHED)
    recorded = part.layers.exchanges
    if not recorded:
        return Missing(TITLE, "Nothing is exchanged: one rank has every channel.")
    places: dict[str, dict[str, float]] = {}
    for exchange in recorded:
        at = places.setdefault(_place(exchange), dict.fromkeys(DIRECTIONS, 0.0))
        at[exchange.direction] = at.get(exchange.direction, 0.0) + bytes_received(exchange)
    ordered = sorted(places.items(), key=lambda item: -sum(item[1].values()))
    shown = ordered[:DRAWN]

    divisor, unit = size_unit(sum(ordered[0][1].values()))

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        values = [
            (paint, [at[direction] / divisor for _, at in shown])
            for direction, paint in DIRECTIONS.items()
        ]
        along = f"{unit} of a step, all ranks together"
        stacked(axes, [short(name) for name, _ in shown], values, along, "")
        legend(figure, list(DIRECTIONS.items()))

    total = sum(bytes_received(exchange) for exchange in recorded)
    most, at = ordered[0]
    of_most = sum(at.values())
    calls = trimmed(sum(exchange.calls for exchange in recorded))
    words = (
        f"A step moves {bytes_text(total)} in {calls} exchanges. "
        f"Most in front of {most}: {bytes_text(of_most)}, {percent(of_most / (total or 1))}."
    )
    caption = (
        f"{bytes_text(total)} in all: bytes that ranks receive in a step for the layer that the "
        "exchange is in front of, forward and backward."
    )
    if len(shown) < len(ordered):
        caption += f" Shown are the {len(shown)} of {len(ordered)} places with the most."
    rows = [
        (
            _place(exchange),
            exchange.collective,
            exchange.direction,
            trimmed(exchange.calls),
            bytes_text(bytes_received(exchange)),
            milliseconds(exchange.exchange),
            milliseconds(max(exchange.waiting)) if exchange.waiting else NONE,
            _speed(exchange),
        )
        for exchange in sorted(recorded, key=lambda exchange: -bytes_received(exchange))
    ]
    headings = (
        "in front of", "collective", "direction", "calls of a step", "bytes of a step",
        "cost, ms", "longest wait, ms", "bytes/s",
    )  # fmt: skip
    table = Table(headings, tuple(rows), words=3)
    return Picture("exchanges", TITLE, words, caption, table, height(len(shown)), draw)


def _place(exchange: WatchedExchange) -> str:
    return exchange.name or "(input)"


def _speed(exchange: WatchedExchange) -> str:
    moved = bytes_received(exchange)
    return (
        f"{bytes_text(moved / exchange.exchange)}/s"
        if exchange.exchange > 0 and np.isfinite(moved)
        else NONE
    )
