"""Each rank's share of every layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hetmp.core.colors import GREY
from hetmp.tools.report.canvas import FEW_RANKS, ROWS, Paint, height, legend, names, of_ranks
from hetmp.tools.report.measures import plan_of
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.records import PlannedLayer, PlanRecord
from hetmp.tools.report.text import Table, percent, ranges, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Partition"

COUNTS = 6
"""Most ranks whose counts are written beside a layer's bar."""

WHOLE = Paint(GREY, "////")


def partition(part: RunPart) -> Picture | Missing:
    """Picture the partition: a stacked bar per layer, a colour and pattern per rank."""
    plan = plan_of(part)
    layers = [layer for layer in plan.layers if len(layer.counts) == plan.ranks] if plan else []
    if plan is None or not layers:
        return Missing(TITLE, "The run's record has no plan: the file is not complete.")
    members = plan.members
    cut = [layer for layer in layers if sum(layer.shares)]

    what = plan.shared.replace("and", "or")

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        if len(layers) <= ROWS:
            _bars(axes, layers, members, what)
        else:
            _areas(axes, layers, members, what)
        named = [
            (f"rank {rank}", paint)
            for rank, paint in zip(members, of_ranks(len(members)), strict=True)
        ]
        if len(members) > FEW_RANKS:
            named = [named[i * (len(named) - 1) // 4] for i in range(5)]
        if len(cut) < len(layers):
            named.append(("whole: on every rank", WHOLE))
        legend(figure, named)

    held = [sum(layer.channels * layer.shares[rank] for layer in cut) for rank in members]
    total = sum(held) or 1
    return Picture(
        "partition",
        TITLE,
        _words(plan, held, total, len(layers), len(cut)),
        _caption(plan, layers, cut),
        _table(plan, layers),
        height(len(layers)),
        draw,
    )


def _bars(axes: "Axes", layers: Sequence[PlannedLayer], members: Sequence[int], what: str) -> None:
    shares = _shares(layers, members)
    before = np.zeros(len(layers))
    places = np.arange(len(layers))
    for i, paint in enumerate(of_ranks(len(members))):
        axes.barh(
            places, shares[:, i], left=before, height=0.72, linewidth=0,
            facecolor=paint.color, hatch=paint.hatch, edgecolor="#ffffff",
        )  # fmt: skip
        before += shares[:, i]
    whole = [100.0 * _is_whole(layer) for layer in layers]
    axes.barh(
        places, whole, height=0.72, linewidth=0,
        facecolor=WHOLE.color, hatch=WHOLE.hatch, edgecolor="#ffffff",
    )  # fmt: skip
    names(axes, [short(layer.name) for layer in layers])
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"% of the layer's {what}")
    if len(members) <= COUNTS:
        beside = axes.secondary_yaxis("right")
        beside.set_yticks(places, [_counts(layer, members) for layer in layers])
        beside.tick_params(length=0)
        beside.spines["right"].set_visible(False)


def _areas(axes: "Axes", layers: Sequence[PlannedLayer], members: Sequence[int], what: str) -> None:
    """Draw layers from left to right as areas, if there are too many for a bar each."""
    shares = _shares(layers, members)
    whole = np.array([100.0 * _is_whole(layer) for layer in layers])
    edges = np.arange(len(layers) + 1) + 0.5
    before = np.zeros(len(layers))
    paints = [(paint, shares[:, i]) for i, paint in enumerate(of_ranks(len(members)))]
    for paint, part in [*paints, (WHOLE, whole)]:
        after = before + part
        if part.any():
            axes.fill_between(
                edges, np.append(before, before[-1]), np.append(after, after[-1]), step="post",
                linewidth=0, facecolor=paint.color, hatch=paint.hatch, edgecolor="#ffffff",
            )  # fmt: skip
        before = after
    axes.set_xlim(0.5, len(layers) + 0.5)
    axes.set_ylim(0, 100)
    axes.set_xlabel("layer, as numbered in the table")
    axes.set_ylabel(f"% of the layer's {what}", rotation_mode="anchor")


def _shares(layers: Sequence[PlannedLayer], members: Sequence[int]) -> np.ndarray:
    """Return (layers, members) shares in percent; 0 for a layer that every rank has whole."""
    return 100 * np.array([[layer.shares[rank] for rank in members] for layer in layers], float)


def _is_whole(layer: PlannedLayer) -> bool:
    return not sum(layer.shares)


def _counts(layer: PlannedLayer, members: Sequence[int]) -> str:
    if _is_whole(layer):
        return "whole"
    if layer.by_images:
        return "/".join(f"{100 * layer.shares[rank]:.3g}" for rank in members) + " % of images"
    return "/".join(str(layer.counts[rank]) for rank in members)


def _words(plan: PlanRecord, held: Sequence[float], total: float, layers: int, cut: int) -> str:
    members = plan.members
    each = [
        f"rank {rank} {percent(count / total)}" for rank, count in zip(members, held, strict=True)
    ]
    if len(members) > FEW_RANKS:
        least, most = min(held) / total, max(held) / total
        each = [f"each of {len(members)} ranks {percent(least)} to {percent(most)}"]
    text = f"Of all {plan.shared}, {', '.join(each)}."
    if cut < layers:
        text += f" {layers - cut} of {layers} layers are whole on every rank."
    if plan.left_out:
        text += f" Left out: {_left_out(plan)}."
    return text


def _caption(plan: PlanRecord, layers: Sequence[PlannedLayer], cut: Sequence[PlannedLayer]) -> str:
    sentences = ["Ranks from left to right" if len(layers) <= ROWS else "Ranks from the bottom up"]
    if len(layers) <= ROWS and len(plan.members) <= COUNTS:
        sentences[0] += f"; beside a bar, how many {plan.shared} each has"
    sentences[0] += "."
    schemes = sorted({layer.scheme for layer in cut})
    if schemes == ["filters"]:
        sentences.append("Scheme filters: each rank owns its output channels' filters.")
    inputs = sum(layer.scheme == "inputs" for layer in cut)
    if inputs:
        sentences.append(f"{inputs} layers are cut along their input channels (scheme inputs).")
    images = sum(layer.by_images for layer in cut)
    if images:
        sentences.append(
            f"{images} layer{'s' * (images > 1)} of scheme batch: each rank computes all channels "
            "of its part of the images."
        )
    if len(cut) < len(layers):
        sentences.append("A layer of scheme whole is computed on every rank alike.")
    if plan.left_out:
        sentences.append("A rank that is left out has no channels and waits until the others end.")
    return " ".join(sentences)


def _left_out(plan: PlanRecord) -> str:
    return f"rank{'s' * (len(plan.left_out) > 1)} {ranges(plan.left_out)}"


def _table(plan: PlanRecord, layers: Sequence[PlannedLayer]) -> Table:
    headings = (
        "layer",
        "kind",
        "scheme",
        "channels",
        *(f"rank {rank}" for rank in range(plan.ranks)),
    )
    numbered = len(layers) > ROWS
    rows = []
    for number, layer in enumerate(layers, start=1):
        each = [
            "left out"
            if rank in plan.left_out
            else "all"
            if _is_whole(layer)
            else f"{100 * layer.shares[rank]:.3g} % of images"
            if layer.by_images
            else str(count)
            for rank, count in enumerate(layer.counts)
        ]
        name = f"{number}. {layer.name}" if numbered else layer.name
        rows.append((name, layer.kind, layer.scheme, str(layer.channels), *each))
    return Table(headings, tuple(rows), words=3)
