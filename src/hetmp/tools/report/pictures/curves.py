"""Loss, accuracy, learning rate and images per second over the steps of one or several runs."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hetmp.core.colors import GREY, ORANGE
from hetmp.core.text import NONE, digits
from hetmp.tools.report import measures
from hetmp.tools.report.canvas import INK, Paint, legend, series
from hetmp.tools.report.measures import Array, WindowedCurve, curve
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import Run
from hetmp.tools.report.text import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGARITHMIC = 20.0
"""Ratio of the largest to the smallest loss from which the axis is logarithmic."""

TEST = Paint(ORANGE, "", (0, (5, 1.5)), "o")


def loss(runs: Sequence[Run]) -> Picture | Missing:
    """Picture the training and test loss; for one run also the learning rate, if it changes."""
    curves = [_training(run, "loss") for run in runs]
    if not any(len(line.steps) for line in curves):
        return Missing("Loss", "No step with a finite loss was recorded.")
    rates = [step.lr for step in runs[0].steps if math.isfinite(step.lr)]
    with_rate = len(runs) == 1 and len(set(rates)) > 1
    finite = np.concatenate([line.median for line in curves])
    logarithmic = finite.min() > 0 and finite.max() / finite.min() > LOGARITHMIC

    def draw(figure: "Figure") -> None:
        if with_rate:
            axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
            steps = [step.step + 1 for step in runs[0].steps]
            below.plot(steps, [step.lr for step in runs[0].steps], color=GREY, linewidth=1.5)
            below.set_ylim(bottom=0)
            _finish(below, "learning rate", runs)
        else:
            axes = figure.subplots()
        _curves(axes, runs, curves, "loss")
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        _finish(axes, "loss", runs, label_steps=not with_rate)
        _legend(figure, runs, with_test=True)

    words = _words(runs, curves, "loss", digits)
    caption = _how_read(curves, runs) + (" The scale is logarithmic." if logarithmic else "")
    caption += " Below: the learning rate." if with_rate else ""
    return Picture(
        "loss",
        "Loss",
        words,
        caption,
        _table(runs, curves, "loss", digits),
        3.9 if with_rate else 3.2,
        draw,
    )


def accuracy(runs: Sequence[Run]) -> Picture | Missing:
    """Picture the share of the labels predicted, in training and test."""
    curves = [_training(run, "accuracy") for run in runs]
    if not any(len(line.steps) for line in curves):
        return Missing("Accuracy", "No step's accuracy was recorded.")

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        _curves(axes, runs, curves, "accuracy", factor=100)
        axes.set_ylim(0, 102)
        _finish(axes, "accuracy, %", runs)
        _legend(figure, runs, with_test=True)

    def text(value: float) -> str:
        return f"{100 * value:.2f} %"

    words = _words(runs, curves, "accuracy", text)
    table = _table(runs, curves, "accuracy", text)
    return Picture("accuracy", "Accuracy", words, _how_read(curves, runs), table, 3.0, draw)


def throughput(runs: Sequence[Run]) -> Picture | Missing:
    """Picture the images per second of the training steps."""
    curves = [curve(*measures.throughput(run)) for run in runs]
    if not any(len(line.steps) for line in curves):
        return Missing(
            "Images per second", "No step was recorded with its times and its number of images."
        )

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for number, (_, line) in enumerate(zip(runs, curves, strict=True)):
            paint = series(number)
            _line(axes, line, paint)
        axes.set_ylim(bottom=0)
        _finish(axes, "images per second", runs)
        _legend(figure, runs, with_test=False)

    speeds = [(float(np.median(line.median)), run) for run, line in _with_curve(runs, curves)]
    if len(speeds) == 1:
        line = next(line for line in curves if len(line.steps))
        words = (
            f"{digits(speeds[0][0])} images per second in the median, "
            f"{digits(float(line.median.min()))} to {digits(float(line.median.max()))} over the "
            "run."
        )
    else:
        words = f"{_extremes(speeds, 'The median of images per second', digits)}."
    caption = (
        "Of the training steps alone, reading included; evaluations and the first step of a run, "
        "or of a resumed part, are not counted. " + _how_read(curves, runs, test=False)
    )
    headings = ("steps taken", *_prefixed(runs, ("images/s", "lower quartile", "upper quartile")))
    columns = [(line.steps, (line.median, line.low, line.high)) for line in curves]
    table = Table(headings, _merged(columns, digits))
    return Picture("throughput", "Images per second", words, caption.strip(), table, 2.8, draw)


def runs_steps(run: Run) -> int:
    """Return the number of steps taken when the last one was recorded."""
    return max((step.step + 1 for step in run.steps), default=0)


def _training(run: Run, what: str) -> WindowedCurve:
    steps = np.array([step.step + 1.0 for step in run.steps])
    return curve(steps, np.array([getattr(step, what) for step in run.steps], dtype=float))


def _tested(run: Run, what: str) -> tuple[Array, Array]:
    pairs = [(each.step, getattr(each, what)) for each in run.evaluations]
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    return np.array([step for step, _ in finite], float), np.array([value for _, value in finite])


def _curves(
    axes: "Axes", runs: Sequence[Run], curves: Sequence[WindowedCurve], what: str, factor: float = 1
) -> None:
    for number, (run, line) in enumerate(zip(runs, curves, strict=True)):
        paint = series(number)
        _line(axes, line, paint, factor)
        steps, values = _tested(run, what)
        mark = "o" if len(steps) <= 40 else ""
        tested = Paint(paint.color, "", ":") if len(runs) > 1 else TEST
        axes.plot(
            steps,
            factor * values,
            color=tested.color,
            linestyle=tested.dash,
            linewidth=1.5,
            marker=mark,
            markersize=4.5,
        )


def _line(axes: "Axes", line: WindowedCurve, paint: Paint, factor: float = 1) -> None:
    if line.per_window > 1:
        axes.fill_between(
            line.steps,
            factor * line.low,
            factor * line.high,
            color=paint.color,
            alpha=0.22,
            linewidth=0,
        )
    axes.plot(
        line.steps,
        factor * line.median,
        color=paint.color,
        linestyle=paint.dash,
        linewidth=1.6,
        marker="o" if len(line.steps) == 1 else "",
        markersize=4,
    )


def _finish(axes: "Axes", what: str, runs: Sequence[Run], label_steps: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid()
    axes.set_axisbelow(True)
    axes.set_ylabel(what, rotation_mode="anchor")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlim(0, max(2, *map(runs_steps, runs)) * 1.01)
    if label_steps or what == "learning rate":
        axes.set_xlabel("steps taken")
    if len(runs) == 1:
        for part in runs[0].parts[1:]:
            if part.record and part.record.resumed:
                axes.axvline(part.record.resumed, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))


def _legend(figure: "Figure", runs: Sequence[Run], with_test: bool) -> None:
    if len(runs) == 1:
        if with_test:
            legend(figure, [("training", series(0)), ("test", TEST)], lines=True)
        return
    legend(figure, [(run.label, series(i)) for i, run in enumerate(runs)], lines=True)


def _how_read(curves: Sequence[WindowedCurve], runs: Sequence[Run], test: bool = True) -> str:
    sentences = []
    windows = sorted({line.per_window for line in curves if line.per_window > 1})
    if windows:
        size = f"{windows[0]}" if len(windows) == 1 else f"{windows[0]} to {windows[-1]}"
        sentences.append(
            f"Lines are medians of {size} steps, bands reach from quartile to quartile."
        )
    if test and len(runs) > 1 and any(run.evaluations for run in runs):
        sentences.append("Dotted, with dots: the test set.")
    if len(runs) == 1 and any(part.record and part.record.resumed for part in runs[0].parts[1:]):
        sentences.append("A dotted upright: the run was resumed.")
    return " ".join(sentences)


def _with_curve(
    runs: Sequence[Run], curves: Sequence[WindowedCurve]
) -> list[tuple[Run, WindowedCurve]]:
    """Return the runs that have a curve."""
    return [(run, line) for run, line in zip(runs, curves, strict=True) if len(line.steps)]


def _words(
    runs: Sequence[Run], curves: Sequence[WindowedCurve], what: str, text: Callable[[float], str]
) -> str:
    """Describe a run's curve, or which of several runs' curves end highest and lowest."""
    pairs = _with_curve(runs, curves)
    if len(pairs) > 1:
        tested = [_tested(run, what)[1] for run, _ in pairs]
        part = "test" if all(len(values) for values in tested) else "training"
        lasts = [values[-1] for values in tested] if part == "test" else None
        ends = lasts or [line.median[-1] for _, line in pairs]
        last = [(float(end), run) for end, (run, _) in zip(ends, pairs, strict=True)]
        return f"At last, the {part} {_extremes(last, what, text)}."
    run, line = pairs[0]
    steps = runs_steps(run)
    course = f"The training {what} goes from {text(line.median[0])} to {text(line.median[-1])}"
    if len(line.steps) == 1:
        course = f"The training {what} is {text(line.median[0])}"
    _, values = _tested(run, what)
    tested_last = f"; at last the test {what} is {text(float(values[-1]))}" if len(values) else ""
    return f"{course} in {steps} step{'s' * (steps != 1)}{tested_last}."


def _extremes(values: Sequence[tuple[float, Run]], what: str, text: Callable[[float], str]) -> str:
    (most, best), (least, worst) = max(values, key=_first), min(values, key=_first)
    if most == least:
        return f"{what} is {text(most)} in all runs"
    return (
        f"{what} is highest in {best.label}, {text(most)}, lowest in {worst.label}, {text(least)}"
    )


def _first(pair: tuple[float, Run]) -> float:
    return pair[0]


def _prefixed(runs: Sequence[Run], headings: Sequence[str]) -> list[str]:
    if len(runs) == 1:
        return list(headings)
    return [f"{run.label}: {heading}" for run in runs for heading in headings]


def _table(
    runs: Sequence[Run], curves: Sequence[WindowedCurve], what: str, text: Callable[[float], str]
) -> Table:
    columns = []
    for run, line in zip(runs, curves, strict=True):
        columns.append((line.steps, (line.median,)))
        steps, values = _tested(run, what)
        columns.append((steps, (values,)))
    return Table(("steps taken", *_prefixed(runs, ("training", "test"))), _merged(columns, text))


def _merged(
    columns: Sequence[tuple[Array, Sequence[Array]]], text: Callable[[float], str]
) -> tuple[tuple[str, ...], ...]:
    """Merge columns into rows by step, with a dash if a column has no value at a step."""
    steps = sorted({float(step) for places, _ in columns for step in places})
    cells: list[dict[float, str]] = []
    for places, values in columns:
        cells += [
            {float(step): text(float(v)) for step, v in zip(places, each, strict=True)}
            for each in values
        ]
    return tuple((f"{step:,.0f}", *(column.get(step, NONE) for column in cells)) for step in steps)
