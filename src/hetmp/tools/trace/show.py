"""The gist of a trace for a terminal: the layers of a step, and the file."""

from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hetmp.core.text import count_ranks
from hetmp.tools.trace.trace import Traced

SHOWN = 12
"""Most layers to show: those that take longest."""


def render_trace(traced: Traced, path: Path, steps: int) -> RenderableType:
    """Make a table of the layers that take longest, with a line on the file at *path*.

    *traced* are the records of *steps* steps.
    """
    return Lines(
        _layers(traced),
        Text(),
        Text(
            f"wrote {path}: {steps} step{'s' * (steps != 1)} on {count_ranks(traced.ranks)}, "
            f"clocks compared to {1e6 * traced.clock_error:.0f} µs; open it at ui.perfetto.dev"
        ),
    )


def _layers(traced: Traced) -> Table:
    table = Table(
        box=None,
        title="Milliseconds of a step, from the quickest rank to the slowest",
        title_justify="left",
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="bold",
    )
    for heading in ("layer", "forward", "backward", "exchange", "waiting"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    layers = traced.times["layers"]
    longest = sorted(layers, key=_seconds, reverse=True)[:SHOWN]
    for layer in layers:
        if layer in longest and _seconds(layer):
            table.add_row(
                layer["name"] or "(before the first)",
                _range(layer["forward"]),
                _range(layer["backward"]),
                f"{1e3 * layer['exchange']:.2f}",
                _range(layer["waiting"]),
            )
    hidden = len(layers) - len(longest)
    if hidden > 0:
        table.add_row(Text(f"and {hidden} that take less", style="dim"))
    for name, seconds in traced.times["rest"].items():
        table.add_row(Text(f"({name})", style="dim"), _range(seconds))
    return table


def _seconds(layer: dict[str, list[float]]) -> float:
    return max(map(sum, zip(layer["forward"], layer["backward"], layer["waiting"], strict=True)))


def _range(seconds: list[float]) -> str:
    low, high = 1e3 * min(seconds), 1e3 * max(seconds)
    return f"{high:.2f}" if len(seconds) == 1 else f"{low:.2f} to {high:.2f}"
