"""Draws what ``hetmp bench --append`` measured: milliseconds of a step by variant, run by run.

    python benchmarks/figure.py results.jsonl out.png

Bars are medians, whiskers quartiles.
"""

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

OURS, OTHER = "#1f6feb", "#b6bec8"
WIDTH, BAR, AROUND = 8.0, 0.3, 0.8
"""Inches: the picture's width, the height of a bar, and of the title and margins of a run."""


def title(run: dict[str, Any]) -> str:
    """What was measured, in lines that fit."""
    config = run["config"]
    ranks = f"{run['ranks']} rank" + ("s" if run["ranks"] > 1 else "")
    text = f"{config['model']}, batch {config['batch_size']}, {ranks}"
    if len(set(config["weights"])) > 1:
        text += " weighted " + " : ".join(f"{weight:g}" for weight in config["weights"])
    if config["slowdown"]:
        text += ", slowed on purpose by " + ", ".join(f"{s:g}" for s in config["slowdown"])
    return textwrap.fill(text, 60)


def draw(axes: Any, run: dict[str, Any]) -> None:
    """A bar per variant, from the top down."""
    names = list(run["seconds"])
    quartiles = [np.percentile(1000 * np.array(run["seconds"][n]), [25, 50, 75]) for n in names]
    low, median, high = np.array(quartiles).T
    places = np.arange(len(names))
    colours = [OURS if name == "sliced" else OTHER for name in names]
    whiskers = np.array([median - low, high - median])
    axes.barh(places, median, height=0.7, color=colours)
    axes.errorbar(median, places, xerr=whiskers, fmt="none", ecolor="#24292f", elinewidth=1.2)
    for place, middle, end in zip(places, median, high, strict=True):
        digits = 1 if middle < 100 else 0
        axes.annotate(
            f"{middle:.{digits}f}",
            (end, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * high.max())
    axes.set_title(title(run), loc="left", fontsize=11, fontweight="bold")
    axes.tick_params(length=0)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """One picture of all runs in a file, one below the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="lines of JSON from hetmp bench --append")
    parser.add_argument("picture", type=Path, help="the .png to write")
    told = parser.parse_args()
    lines = told.results.read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines if line.strip()]
    if not runs:
        parser.error(f"{told.results} has no results: run hetmp bench --append {told.results}")
    heights = [BAR * len(run["seconds"]) + AROUND for run in runs]
    plt.rcParams["font.size"] = 10
    figure, rows = plt.subplots(
        len(runs),
        squeeze=False,
        figsize=(WIDTH, sum(heights)),
        height_ratios=heights,
        layout="constrained",
    )
    for (axes,), run in zip(rows, runs, strict=True):
        draw(axes, run)
    rows[-1][0].set_xlabel("milliseconds a step: medians, and whiskers from quartile to quartile")
    figure.savefig(told.picture, dpi=200)


if __name__ == "__main__":
    main()
