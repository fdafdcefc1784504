"""The predicted time of each layer, beside the measured one."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hetmp.core.colors import BLUE, ORANGE
from hetmp.core.text import NONE, digits
from hetmp.tools.report.canvas import INK, ROWS, height, names
from hetmp.tools.report.measures import layer_seconds, plan_of, step_times
from hetmp.tools.report.pictures.layers import MANY, NOT_WATCHED
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.text import Table, milliseconds, seconds_text, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Predicted and measured"


def predicted(part: RunPart) -> Picture | Missing:
    """Picture the predicted and the measured time of each layer."""
    plan, watched, times = plan_of(part), part.layers, step_times(part)
    if plan is None or plan.predicted_seconds is None:
        return Missing(
            TITLE,
            "Nothing was predicted: the shares were not planned from measured times. Train with "
            "`--weights auto`, or with a plan of `hetmp plan`.",
        )
    took = seconds_text(times.step) if times else NONE
    whole = f"Of a step, {seconds_text(plan.predicted_seconds)} were predicted and it takes {took}."
    if not plan.predicted:
        return Missing(
            TITLE, f"{whole} The plan is of an older version and says nothing of layers."
        )
    if watched is None or not watched.layers:
        return Missing(TITLE, f"{whole} {NOT_WATCHED}")
    measured = {
        layer.name: layer_seconds(
            np.add(layer.forward, layer.backward), layer.exchange, np.array(layer.waiting)
        )
        for layer in watched.layers
        if len(layer.forward) == len(layer.backward) == len(layer.waiting)
    }
    pairs = [
        (
            layer.name,
            layer_seconds(np.array(layer.compute), layer.exchange, np.array(layer.idle)),
            measured.get(layer.name, np.nan),
        )
        for layer in plan.predicted
        if len(layer.compute) == len(layer.idle)
    ]
    most = ROWS if len(pairs) <= ROWS else MANY
    longest = sorted(range(len(pairs)), key=lambda i: -np.nanmax([*pairs[i][1:], 0.0]))[:most]
    shown = [pairs[i] for i in sorted(longest)]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        places = range(len(shown))
        before = [1e3 * pair[1] for pair in shown]
        after = [1e3 * pair[2] for pair in shown]
        axes.hlines(places, before, after, color=INK, alpha=0.35, linewidth=1.2)
        mark: Any = {"linestyle": "", "markersize": 7}
        axes.plot(
            before, places, marker="D", color=ORANGE, fillstyle="none", markeredgewidth=1.6,
            label="predicted", **mark,
        )  # fmt: skip
        axes.plot(after, places, marker="o", color=BLUE, label="measured", **mark)
        names(axes, [short(pair[0]) or "(input)" for pair in shown])
        axes.set_xlim(left=0)
        axes.set_xlabel("ms of a step: computing, exchange and waiting, in the mean over the ranks")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper left", ncols=2)

    rows = [
        (name or "(input)", milliseconds(expected), milliseconds(actual), _ratio(actual, expected))
        for name, expected, actual in pairs
    ]
    step = times.step - float(np.mean(times.median["reading"])) if times else np.nan
    last = ("the step", milliseconds(plan.predicted_seconds), milliseconds(step))
    rows.append((*last, _ratio(step, plan.predicted_seconds)))
    caption = (
        "A layer has the channel-wise work behind it with it, and the exchanges in front of it."
    )
    if len(shown) < len(pairs):
        caption += f" Shown are the {len(shown)} of {len(pairs)} layers that take longest."
    return Picture(
        "predicted",
        TITLE,
        f"{whole} {_farthest(pairs)}",
        caption,
        Table(("layer", "predicted, ms", "measured, ms", "measured / predicted"), tuple(rows)),
        height(len(shown)),
        draw,
    )


def _farthest(pairs: list[tuple[str, float, float]]) -> str:
    known = [pair for pair in pairs if np.isfinite(pair[2])]
    if not known:
        return "No layer has both figures."
    name, expected, actual = max(known, key=lambda pair: abs(pair[2] - pair[1]))
    return (
        f"Farthest apart is {name or '(input)'}: {seconds_text(expected)} predicted, "
        f"{seconds_text(actual)} measured."
    )


def _ratio(actual: float, expected: float) -> str:
    return digits(actual / expected) if expected > 0 else NONE
