"""The memory of each rank, beside its share of the memory of one process."""

from typing import TYPE_CHECKING

import numpy as np

from hetmp.core.text import NONE, bytes_text
from hetmp.tools.report.canvas import INK, PARTS, ROWS, height, legend, stacked
from hetmp.tools.report.measures import members, shared, shares
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.text import Table, percent, size_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Memory by rank"

HELD = "parameters", "gradients", "optimizer"
KINDS = (*HELD, "activations")


def memory(part: RunPart) -> Picture | Missing:
    """Picture parameters, gradients, optimizer state and activations of each rank."""
    record = part.memory
    if record is None:
        return Missing(
            TITLE,
            "No memory was recorded: this run is of an older version, or ended in its first step. "
            "Train again.",
        )
    ranks = members(part)
    held = {kind: np.array(getattr(record, kind), float) for kind in KINDS}
    held = {kind: sizes for kind, sizes in held.items() if len(sizes) == len(ranks)}
    if not set(HELD) <= set(held):
        return Missing(TITLE, "The memory's record is not of the ranks that took part.")
    share = record.share if len(record.share) == len(ranks) else shares(part)
    whole = record.whole.parameters + record.whole.gradients + record.whole.optimizer
    due = np.array(share) * whole if len(share) else np.full(len(ranks), np.nan)
    labels = [f"rank {rank}" for rank in ranks]
    totals = np.sum([held[kind] for kind in HELD], axis=0)

    # Layers that share the images are whole on every rank: nobody is due a share of them.
    cut = shared(part) == "channels"
    with_share = cut and len(labels) <= ROWS and bool(np.isfinite(due).all()) and whole > 0
    divisor, unit = size_unit(float(np.max(np.sum(list(held.values()), axis=0))))

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        values = [(PARTS[kind], (sizes / divisor).tolist()) for kind, sizes in held.items()]
        stacked(axes, labels, values, unit, "rank")
        if with_share:
            places = np.arange(len(labels))
            axes.vlines(due / divisor, places - 0.44, places + 0.44, color=INK, linewidth=2.2)
        upright = ["the rank's share"] if with_share else []
        legend(figure, [(kind, PARTS[kind]) for kind in held], upright=upright)

    most = int(np.argmax(totals))
    words = (
        f"{labels[most].capitalize()} holds most: {bytes_text(totals[most])} of parameters, "
        f"gradients and optimizer state; one process would hold {bytes_text(whole)}."
    )
    caption = "Activations: what is kept for the backward pass of a step."
    if with_share:
        caption += (
            " The upright line is where parameters, gradients and optimizer state would end if the "
            "rank held exactly its share of the channels."
        )
    if not cut:
        caption += " Layers of scheme batch are whole on every rank."
    rows = []
    for i, label in enumerate(labels):
        part_of = totals[i] / whole if whole else np.nan
        rows.append(
            (
                label,
                *(bytes_text(held[kind][i]) if kind in held else NONE for kind in KINDS),
                percent(part_of),
                percent(share[i]) if len(share) else NONE,
                _grown(record.peak, record.before, i),
            )
        )
    whole_row = [bytes_text(getattr(record.whole, kind)) for kind in HELD]
    rows.append(("one process", *whole_row, NONE, percent(1.0), percent(1.0), NONE))
    headings = (
        "rank",
        *KINDS,
        "of one process",
        f"share of {shared(part)}",
        "peak, beyond the start",
    )
    return Picture(
        "memory", TITLE, words, caption, Table(headings, tuple(rows)), height(len(labels)), draw
    )


def _grown(peak: tuple[float, ...], before: tuple[float, ...], i: int) -> str:
    if i >= len(peak):
        return NONE
    return bytes_text(max(0.0, peak[i] - (before[i] if i < len(before) else 0.0)))
