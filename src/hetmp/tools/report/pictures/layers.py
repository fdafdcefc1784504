"""The time of a step on each rank, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hetmp.tools.report.canvas import PARTS, ROWS, legend, names, stacked
from hetmp.tools.report.canvas import height as height_of
from hetmp.tools.report.measures import Array, members
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.records import Layers
from hetmp.tools.report.text import Table, listed, milliseconds, seconds_text, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Time by rank and layer"

PANELS = 4
"""Most ranks to draw side by side."""

MANY = 24
"""Layers to draw of a network with more than can be told apart."""

TABLED = 3000
"""Most rows of the table; beyond, it has only the layers drawn."""

KINDS = "forward", "backward", "exchange", "waiting", "other"

BEFORE = "(input)"
"""Name of the work before the first mixing layer."""

NOT_WATCHED = (
    "No steps were watched layer by layer: this run is of an older version, was told `--watch 0`, "
    "or ended too early. Train again, for 20 steps or more, without `--watch 0`."
)


@dataclass(frozen=True)
class _Row:
    """Seconds of a layer, or of work that belongs to none: by kind, (ranks,) each."""

    name: str
    seconds: dict[str, Array]

    @property
    def whole(self) -> Array:
        """Return the seconds of each rank, all kinds together."""
        return np.sum(list(self.seconds.values()), axis=0)

    @property
    def lasts(self) -> float:
        """Return the seconds that it adds to a step."""
        return float(self.whole.mean())


def layers(part: RunPart) -> Picture | Missing:
    """Picture forward, backward, exchange and waiting of every layer on every rank."""
    watched = part.layers
    if watched is None or not watched.layers:
        return Missing(TITLE, NOT_WATCHED)
    ranks = members(part)
    of_layers, rest = _rows(watched, len(ranks))
    if not of_layers:
        return Missing(TITLE, "The layers' times are not of the ranks that took part.")
    drawn = [*_longest(of_layers, ROWS if len(of_layers) <= ROWS else MANY), *rest]
    columns = _telling(of_layers, len(ranks))
    kinds = [kind for kind in KINDS if any(row.seconds[kind].any() for row in drawn)]

    def draw(figure: "Figure") -> None:
        panels = np.atleast_1d(figure.subplots(1, len(columns), sharex=True, sharey=True))
        labels = [short(row.name) for row in drawn]
        for axes, i in zip(panels, columns, strict=True):
            values = [
                (PARTS[kind], [1e3 * row.seconds[kind][i] for row in drawn]) for kind in kinds
            ]
            stacked(axes, labels, values, "ms of a step", "layer")
            axes.set_title(f"rank {ranks[i]}")
        widest = 1e3 * max(float(row.whole[columns].max()) for row in drawn)
        panels[0].set_xlim(0, widest * 1.03 or 1.0)
        names(panels[0], labels)
        for axes in panels[1:]:
            axes.tick_params(axis="y", labelleft=False)
        legend(figure, [(kind, PARTS[kind]) for kind in kinds])

    longest = max(of_layers, key=lambda row: row.lasts)
    words = f"{longest.name} takes longest, {seconds_text(longest.lasts)} of a step"
    if len(of_layers) > 1:
        together = seconds_text(sum(row.lasts for row in of_layers))
        words += f"; all {len(of_layers)} layers together take {together}"
    everything = [*of_layers, *rest]
    tabled = everything if len(everything) * len(ranks) <= TABLED else drawn
    whole = len(tabled) * len(ranks) <= TABLED
    rows = tuple(
        (row.name, str(rank), *(milliseconds(row.seconds[kind][i]) for kind in kinds))
        for row in tabled
        for i, rank in enumerate(ranks)
        if whole or i in columns
    )
    table = Table(("layer", "rank", *(f"{kind}, ms" for kind in kinds)), rows, words=2)
    return Picture(
        "layers",
        TITLE,
        f"{words}.",
        _caption(watched.steps, (len(of_layers), len(drawn) - len(rest)), rest, ranks, columns),
        table,
        height_of(len(drawn)) + 0.3,
        draw,
    )


def _rows(watched: Layers, ranks: int) -> tuple[list[_Row], list[_Row]]:
    """Return the layers' times, and those of other work; only rows that take time."""
    nothing = dict.fromkeys(KINDS, np.zeros(ranks))
    of_layers = [
        _Row(
            layer.name or BEFORE,
            nothing
            | {
                "forward": _finite(layer.forward),
                "backward": _finite(layer.backward),
                "exchange": _finite((layer.exchange,) * ranks),
                "waiting": _finite(layer.waiting),
            },
        )
        for layer in watched.layers
        if all(len(times) == ranks for times in (layer.forward, layer.backward, layer.waiting))
    ]
    rest = [
        _Row(f"({name})", nothing | {"other": _finite(seconds)})
        for name, seconds in watched.rest.items()
        if len(seconds) == ranks
    ]
    return [row for row in of_layers if row.lasts > 0], [row for row in rest if row.lasts > 0]


def _finite(seconds: Sequence[float]) -> Array:
    return np.nan_to_num(np.array(seconds, dtype=float))


def _caption(
    steps: int,
    layers: tuple[int, int],
    rest: Sequence[_Row],
    ranks: Sequence[int],
    columns: Sequence[int],
) -> str:
    """Describe how to read the picture; *layers* are the numbers of all and of drawn layers."""
    sentences = [
        f"Medians over {steps} step{'s' * (steps != 1)} that were watched. A layer has the "
        "channel-wise work behind it with it, and the exchanges in front of it."
    ]
    if rest:
        sentences.append("In parentheses: what belongs to no layer.")
    there, drawn = layers
    if drawn < there:
        sentences.append(f"Shown are the {drawn} of {there} layers that take longest, in order.")
    if len(columns) < len(ranks):
        sentences.append(
            f"Shown are ranks {listed([ranks[i] for i in columns])} of {len(ranks)}, which compute "
            "or wait longest."
        )
    return " ".join(sentences)


def _telling(rows: Sequence[_Row], ranks: int) -> list[int]:
    """Choose the ranks to show: all, or those that compute or wait longest."""
    if ranks <= PANELS:
        return list(range(ranks))
    compute = np.sum([row.seconds["forward"] + row.seconds["backward"] for row in rows], axis=0)
    waiting = np.sum([row.seconds["waiting"] for row in rows], axis=0)
    chosen: list[int] = []
    for busiest, idlest in zip(np.argsort(-compute), np.argsort(-waiting), strict=True):
        chosen += [i for i in dict.fromkeys((int(busiest), int(idlest))) if i not in chosen]
    return sorted(chosen[:PANELS])


def _longest(rows: Sequence[_Row], most: int) -> list[_Row]:
    """Return the *most* layers that take longest, in the layers' order."""
    longest = sorted(range(len(rows)), key=lambda i: -rows[i].lasts)[:most]
    return [rows[i] for i in sorted(longest)]
