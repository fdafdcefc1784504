"""The time of a step in each of several runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetmp.tools.report.canvas import PARTS, height, legend, stacked
from hetmp.tools.report.measures import KINDS, step_times
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import Run
from hetmp.tools.report.text import Table, milliseconds, seconds_text, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Time of a step, run by run"


def runs(all_runs: Sequence[Run]) -> Picture | Missing:
    """Picture compute, exchange, waiting and reading of each run, in the mean over its ranks."""
    timed = [(run, times) for run in all_runs if (times := step_times(run.last)) is not None]
    if not timed:
        return Missing(TITLE, "No step was recorded with its times.")
    means = {kind: [float(times.median[kind].mean()) for _, times in timed] for kind in KINDS}

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        values = [(PARTS[kind], [1e3 * value for value in means[kind]]) for kind in KINDS]
        stacked(axes, [short(run.label) for run, _ in timed], values, "ms of a step", "run")
        legend(figure, [(kind, PARTS[kind]) for kind in KINDS])

    ordered = sorted(timed, key=lambda item: item[1].step)
    words = (
        f"A step is shortest in {ordered[0][0].label}, {seconds_text(ordered[0][1].step)}, and "
        f"longest in {ordered[-1][0].label}, {seconds_text(ordered[-1][1].step)}."
    )
    rows = tuple(
        (run.label, *(milliseconds(means[kind][i]) for kind in KINDS), milliseconds(times.step))
        for i, (run, times) in enumerate(timed)
    )
    headings = ("run", *(f"{kind}, ms" for kind in KINDS), "step, ms")
    caption = "Medians over the steps, in the mean over the ranks of a run."
    return Picture("steps", TITLE, words, caption, Table(headings, rows), height(len(timed)), draw)
