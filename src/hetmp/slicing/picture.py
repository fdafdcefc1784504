"""A plan for people: a table for a terminal, and a bar per layer for a notebook."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from hetmp.core.colors import GREY, rank_colors
from hetmp.core.text import count_ranks

if TYPE_CHECKING:
    from hetmp.slicing.plan import LayerPlan, Plan

MOST_COUNTS = 16
"""Most ranks of which each one's count is written; of more the least and the most."""

_WHOLE = f"repeating-linear-gradient(45deg,{GREY} 0 3px,transparent 3px 7px)"
"""The bar of a layer that every rank holds whole."""

_EDGE = "box-shadow:inset 0 0 0 1px rgba(128,128,128,.5)"
"""Around a colour that may be that of the ground."""


def table_of(plan: "Plan") -> str:
    """Return a line per mixing layer: path, kind, scheme, channels and those of each rank.

    What the backward pass has of a layer is added where the plan says it of any.
    """
    rows: list[tuple[str, ...]] = [("path", "kind", "scheme", "channels", "per rank")]
    for layer in plan.layers:
        rows.append((layer.name, layer.kind, layer.scheme, str(layer.channels), _counts(layer)))
    if any(layer.backward for layer in plan.layers):
        words = ("backward", *(layer.backward or "" for layer in plan.layers))
        rows = [(*row, word) for row, word in zip(rows, words, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def html_of(plan: "Plan", words: Sequence[str] = (), rank: int | None = None) -> str:
    """Return a picture of *plan* as HTML without script: a bar per layer, a colour per rank.

    Text has the colour of its surroundings, and the ground is theirs.

    Args:
        plan: is shown.
        words: more lines for its head.
        rank: this rank's number, which is marked; None where there is none.
    """
    colors = rank_colors(plan.ranks)
    lines = [f"<strong>{count_ranks(plan.ranks)}</strong>", *map(escape, words)]
    rows = "".join(_row(layer, colors) for layer in plan.layers)
    return (
        '<div style="max-width:60em;font-size:90%;line-height:1.35;text-align:left">'
        f"<div>{'<br>'.join(lines)}</div>"
        f'<div style="margin:.4em 0">{_legend(plan, colors, rank)}</div>'
        '<div style="max-height:36em;overflow:auto"><div style="display:grid;'
        "grid-template-columns:minmax(5em,max-content) minmax(4em,1fr) minmax(2.5em,max-content);"
        f'gap:.25em .7em;align-items:center">{rows}</div></div></div>'
    )


def _row(layer: "LayerPlan", colors: Sequence[str]) -> str:
    kind = f"{layer.kind}, {layer.scheme}, {layer.channels} channels"
    kind += f", backward {layer.backward}" if layer.backward else ""
    if layer.is_cut or layer.cuts_batch:
        unit = " % of the images" * layer.cuts_batch
        parts = "".join(
            f'<span title="rank {rank}: {share}{unit}" '
            f'style="flex:{share} 1 0;background:{color};{_EDGE}"></span>'
            for rank, (share, color) in enumerate(zip(_each(layer), colors, strict=True))
            if share != "0"
        )
    else:
        parts = f'<span title="whole on every rank" style="flex:1;background:{_WHOLE}"></span>'
    return (
        f'<div style="overflow-wrap:anywhere"><code style="background:none;color:inherit">'
        f"{escape(layer.name) or '(the model)'}</code>"
        f'<br><span style="font-size:85%">{escape(kind)}</span></div>'
        f'<div style="display:flex;gap:1px;height:1.1em">{parts}</div>'
        f'<div style="overflow-wrap:anywhere">{_counts(layer).replace("/", "/<wbr>")}</div>'
    )


def _legend(plan: "Plan", colors: Sequence[str], rank: int | None) -> str:
    shown = list(range(plan.ranks))
    if len(shown) > MOST_COUNTS:
        shown = sorted({0, rank or 0, plan.ranks - 1})
    items = [
        (
            f"background:{colors[number]};{_EDGE}",
            f"rank {number}"
            + " (this one)" * (number == rank)
            + (" left out" if number in plan.left_out else f": {_held(plan, number)}"),
        )
        for number in shown
    ]
    if not all(layer.shares for layer in plan.layers):
        items.append((f"background:{_WHOLE}", "whole: on every rank"))
    return " ".join(
        '<span style="white-space:nowrap;margin-right:1em"><span style="display:inline-block;'
        f'width:.8em;height:.8em;margin-right:.35em;{style}"></span>{text}</span>'
        for style, text in items
    )


def _held(plan: "Plan", rank: int) -> str:
    """Return how much of the layers a rank has: a number where only channels are shared."""
    if plan.shared == "channels":
        return f"{plan.held[rank]} channels"
    return f"{100 * plan.held[rank] / max(1, sum(plan.held)):.0f} % of {plan.shared}"


def _counts(layer: "LayerPlan") -> str:
    if not layer.shares:
        return "whole"
    each = _each(layer)
    if len(each) > MOST_COUNTS:
        shown = f"{min(each, key=float)} to {max(each, key=float)}"
    else:
        shown = "/".join(each)
    return shown + " % of images" * layer.cuts_batch


def _each(layer: "LayerPlan") -> list[str]:
    """Return each rank's share of a layer: its channels, or its percentage of the images."""
    if layer.cuts_batch:
        return percentages(layer.weights)
    return list(map(str, layer.counts))


def percentages(weights: Sequence[float]) -> list[str]:
    """Return each rank's percentage of the images of a batch that is shared by *weights*."""
    return [f"{100 * weight / sum(weights):.3g}" for weight in weights]
