"""The time of a step on each rank."""

from typing import TYPE_CHECKING

import numpy as np

from hetmp.tools.report.canvas import PARTS, height, legend, stacked
from hetmp.tools.report.measures import KINDS, step_times
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.text import Table, milliseconds, percent, seconds_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Time by rank"

SEEN = 0.002
"""Least share of a step that is wide enough to be seen."""


def ranks(part: RunPart) -> Picture | Missing:
    """Picture compute, exchange, waiting and reading of each rank, in a step and in total."""
    times = step_times(part)
    if times is None:
        return Missing(TITLE, "No step was recorded with its times.")
    labels = [f"rank {rank}" for rank in times.ranks]

    seen = [kind for kind in KINDS if times.median[kind].max() > SEEN * times.step]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        values = [(PARTS[kind], (1e3 * times.median[kind]).tolist()) for kind in seen]
        stacked(axes, labels, values, "ms of a step", "rank")
        legend(figure, [(kind, PARTS[kind]) for kind in seen])

    longest = int(np.argmax(times.median["compute"]))
    waiter = int(np.argmax(times.median["waiting"]))
    words = f"A step takes {seconds_text(times.step)}"
    if len(labels) == 1:
        words += f", of which {seconds_text(times.median['compute'][0])} are computing."
    else:
        words += (
            f". {labels[longest].capitalize()} computes longest, "
            f"{seconds_text(times.median['compute'][longest])}; {labels[waiter]} waits longest, "
            f"{seconds_text(times.median['waiting'][waiter])}; exchanges take "
            f"{seconds_text(float(times.median['exchange'].mean()))}."
        )
    caption = (
        f"Medians over {times.counted} steps; the first is not counted. Exchange: what the "
        "exchanges cost the rank that comes last to each. Waiting: what a rank spends in them "
        "beyond that. Reading: how long it waited for the images."
    )
    rows = []
    for i, label in enumerate(labels):
        whole = sum(times.total[kind][i] for kind in KINDS)
        in_step = [milliseconds(times.median[kind][i]) for kind in KINDS]
        in_all = [
            f"{seconds_text(times.total[kind][i])} ({percent(times.total[kind][i] / (whole or 1))})"
            for kind in KINDS
        ]
        rows.append((label, *in_step, *in_all))
    headings = ("rank", *(f"{kind}, ms of a step" for kind in KINDS))
    headings += tuple(f"{kind}, in all" for kind in KINDS)
    return Picture(
        "ranks", TITLE, words, caption, Table(headings, tuple(rows)), height(len(labels)), draw
    )
