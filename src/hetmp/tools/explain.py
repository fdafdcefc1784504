"""Explain a plan for a model: its layers, exchanges and channel groups. No MPI."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from hetmp.core.state import PARTIAL, Sliced, batch_of
from hetmp.core.text import bytes_text
from hetmp.exchange import collective, share_shape
from hetmp.slicing import SlicedTensor, Table, make_table
from hetmp.slicing.channel_groups import ChannelGroups, channel_groups
from hetmp.slicing.graph import ModelGraph, Node
from hetmp.slicing.hooks import schedule_hooked
from hetmp.slicing.picture import percentages
from hetmp.slicing.plan import Plan
from hetmp.slicing.schedule import CallStep, ExchangeStep, Schedule
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.step_bytes import StepBytes, step_bytes

NAMED = 3
"""Most layers of a channel group to name."""


@dataclass
class LayerRow:
    """One layer, or one operation that needs an exchange.

    Attributes:
        name, kind: its path in the module, and its type.
        channels: number of its output channels; None if it has none of its own.
        counts: each rank's number of them; where images are shared, each rank's percentage.
        groups: numbers of the channel groups of its output.
        scheme: the scheme of a layer that mixes channels.
        exchanges: the collectives before it; after it for scheme ``inputs``.
        shared: the earlier layer for which the same value was exchanged.
        received: bytes that each rank receives, forward and backward together: per image, or for
            the batch that was asked for.
        images: whether the ranks share the images instead of the channels.
        reason: why every rank computes it whole, if it has no rule.
        mixes: whether it mixes channels, so that a plan has an entry for it.
    """

    name: str
    kind: str
    channels: int | None
    counts: tuple[int, ...] | tuple[str, ...]
    groups: str
    scheme: str
    exchanges: list[str] = field(default_factory=list)
    shared: str = ""
    received: list[float] = field(default_factory=list)
    reason: str = ""
    mixes: bool = False
    images: bool = False

    @property
    def matters(self) -> bool:
        """Return whether the row belongs in the short table."""
        return bool(self.mixes or self.exchanges or self.reason)


@dataclass(frozen=True)
class Explanation:
    """The content of ``hetmp explain`` for a model and a plan.

    Attributes:
        rows: the operations of training, in the order in which they run.
        groups: the channel groups, cut as ``plan`` says.
        held: number of parameters of each rank, out of ``parameters``.
        modes: whether evaluation runs different operations.
        moved: what a step with a batch of ``images`` images moves.
        images: of the batch that bytes are those of; None for those of an image.
        hooked: the parts that have hooks, whose exchanges are counted.
    """

    rows: tuple[LayerRow, ...]
    groups: ChannelGroups
    plan: Plan
    held: tuple[int, ...]
    parameters: int
    modes: bool
    moved: StepBytes
    images: int | None = None
    hooked: tuple[str, ...] = ()

    @property
    def received(self) -> list[float]:
        """Return the bytes that each rank receives by the exchanges of the rows."""
        return [
            sum(row.received[rank] for row in self.rows if row.received)
            for rank in range(self.plan.ranks)
        ]


def explain(graph: ModelGraph, plan: Plan, images: int | None = None) -> Explanation:
    """Explain *plan* for the model of *graph*.

    Args:
        graph: the model.
        plan: how its layers are cut.
        images: of the batch whose bytes are shown; None to show those of an image.

    Raises:
        HetmpError: the plan is for another model.
    """
    schedule = schedule_model(graph, plan)
    groups = channel_groups(graph)
    table = make_table(graph, schedule)
    hooked = tuple(filter(None, graph.hooked))
    shown = schedule_hooked(graph, plan, schedule, hooked) if hooked else schedule
    return Explanation(
        tuple(_rows(plan, shown, groups, images)),
        groups,
        plan,
        tuple(_held(table, rank) for rank in range(plan.ranks)),
        sum(entry.shape.numel() for entry in _parameters(table)),
        len(schedule.programs) > 1,
        step_bytes(graph, shown, table, images or 1),
        images,
        hooked,
    )


def _rows(
    plan: Plan, schedule: Schedule, groups: ChannelGroups, images: int | None
) -> list[LayerRow]:
    program = schedule.training
    rows: list[LayerRow] = []
    waiting: list[ExchangeStep] = []
    first_wanted: dict[str, str] = {}
    for step in program.flat:
        if isinstance(step, ExchangeStep):
            # A sum belongs to the layer that made its summands.
            if step.before == PARTIAL and rows and rows[-1].scheme == "inputs":
                _add(rows[-1], step, plan.ranks, images)
            else:
                waiting.append(step)
            first_wanted.setdefault(step.name, "")
        elif isinstance(step, CallStep):
            row = _row(step, plan, groups)
            for exchange in waiting:
                _add(row, exchange, plan.ranks, images)
                first_wanted[exchange.name] = row.name
            if not waiting:
                row.shared = next((first_wanted.get(name, "") for name in step.sources), "")
            waiting = []
            rows.append(row)
    if waiting:
        row = LayerRow("", "output", None, (), "", "")
        for exchange in waiting:
            _add(row, exchange, plan.ranks, images)
        rows.append(row)
    return rows


def _row(step: CallStep, plan: Plan, groups: ChannelGroups) -> LayerRow:
    node = step.node
    own = step.run.scheme
    scheme = own.name if own is not None else "whole" if node.reason else ""
    channels = node.rule.output_channels(node.call.whole_layer) if node.rule.mixes else None
    counts: tuple[int, ...] | tuple[str, ...] = ()
    shared = batch_of(step.after)
    if shared is not None:
        counts = tuple(percentages([float(weight) for weight in shared.weights]))
    elif node.rule.mixes and scheme != "whole":
        counts = plan.layer(node.path).counts
    elif isinstance(step.after, Sliced):
        channels, counts = step.after.layout.total, step.after.layout.counts
    return LayerRow(
        node.path,
        _kind(node),
        channels,
        counts,
        _groups_of(node, groups) if node.rule.mixes else "",
        scheme,
        reason=node.reason or "",
        mixes=node.rule.mixes,
        images=shared is not None,
    )


def _kind(node: Node) -> str:
    layer = node.call.layer
    if layer is None:
        return f"{node.call.title}()"
    kernel = getattr(layer, "kernel_size", None)
    size = " " + "×".join(map(str, kernel)) if isinstance(kernel, tuple) else ""
    split = getattr(layer, "groups", 1)
    return f"{type(layer).__name__}{size}" + (f", {split} groups" if split > 1 else "")


def _groups_of(node: Node, groups: ChannelGroups) -> str:
    pieces = groups.pieces[node.path]
    return " ".join(
        f"{piece.group.number}" + (f"×{piece.block}" if piece.block > 1 else "")
        for piece in pieces
    )  # fmt: skip


def _add(row: LayerRow, exchange: ExchangeStep, ranks: int, images: int | None) -> None:
    row.exchanges.append(collective(exchange.before, exchange.after))
    received: list[float] = [
        sum(
            exchange.received(rank, ranks)
            if images is None
            else exchange.received_of_batch(images, rank, ranks)
        )
        for rank in range(ranks)
    ]
    row.received = [a + b for a, b in zip(row.received or [0.0] * ranks, received, strict=True)]


def _parameters(table: Table) -> list[SlicedTensor]:
    """Return every parameter once."""
    return [entry for entry in table.values() if entry.parameter and entry.alias_of is None]


def _held(table: Table, rank: int) -> int:
    return sum(
        math.prod(share_shape(entry.shape, entry.state, rank)) for entry in _parameters(table)
    )


# --- for a terminal -----------------------------------------------------------------------------


def render(
    explanation: Explanation, *, everything: bool = False, narrow: bool = False
) -> RenderableType:
    """Make tables of the layers and the groups, with totals.

    Args:
        explanation: what is shown.
        everything: also show operations that only pass slices on.
        narrow: leave out columns that follow from the others.
    """
    rows = [row for row in explanation.rows if everything or row.matters]
    parts: list[RenderableType] = [_layer_table(rows, explanation, narrow)]
    parts += [_group_table(explanation), _totals(explanation)]
    fallbacks = [row for row in explanation.rows if row.reason]
    if fallbacks:
        parts.append(_fallback_text(fallbacks, _bytes_of(explanation)))
    return Lines(*parts)


def _layer_table(rows: Sequence[LayerRow], explained: Explanation, narrow: bool) -> RichTable:
    plan, bytes_of = explained.plan, _bytes_of(explained)
    images = " or of the images" if any(layer.cuts_batch for layer in plan.layers) else ""
    table = _table(f"Layers, and what each of the {plan.ranks} ranks has of their channels{images}")
    columns = {
        "layer": [row.name or row.kind for row in rows],
        "kind": ["" if row.kind == "output" else row.kind for row in rows],
        "channels": ["" if row.channels is None else str(row.channels) for row in rows],
        "partition": [
            "/".join(map(str, row.counts)) + " % of images" * row.images
            if row.counts
            else ("all" if row.mixes else "")
            for row in rows
        ],
        "group": [row.groups for row in rows],
        "scheme": [row.scheme for row in rows],
        "exchange": [_exchange_text(row) for row in rows],
        bytes_of: [bytes_text(sum(row.received)) if row.received else "" for row in rows],
    }
    if {row.scheme for row in rows if row.mixes} == {"filters"}:
        del columns["scheme"]
    if narrow:
        del columns["channels"]  # the partition sums to them
    for heading in columns:
        right = heading in ("channels", bytes_of)
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row, cells in zip(rows, zip(*columns.values(), strict=True), strict=True):
        table.add_row(*cells, style="yellow" if row.reason else "")
    return table


def _table(title: str) -> RichTable:
    return RichTable(
        box=None, title=title, title_justify="left", padding=(0, 2, 0, 0), header_style="bold"
    )


def _exchange_text(row: LayerRow) -> str:
    moved = [name for name in row.exchanges if name != "-"]
    if moved:
        times = {name: moved.count(name) for name in moved}
        return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in times.items())
    if row.exchanges:
        return "keep mine"
    return "as above" if row.shared and row.mixes else ""


def _group_table(explanation: Explanation) -> RenderableType:
    shared = [group for group in explanation.groups.groups if len(group.layers) > 1]
    alone = len(explanation.groups.groups) - len(shared)
    if not shared:
        return Text("\nChannel groups: every layer's channels can be cut independently")
    table = _table("\nChannel groups: layers whose channels must be cut in the same way")
    table.add_column("group", justify="right")
    table.add_column("channels", justify="right")
    table.add_column("layers", overflow="fold")
    for group in shared:
        more = len(group.layers) - NAMED
        named = ", ".join(group.layers[:NAMED]) + (f" and {more} more" if more > 0 else "")
        table.add_row(str(group.number), str(group.units), named)
    if alone:
        table.caption = f"{alone} more of one layer alone"
        table.caption_justify = "left"
    return table


def _totals(explanation: Explanation) -> Text:
    ranks = range(explanation.plan.ranks)
    held, moved, images = explanation.held, explanation.moved, explanation.images
    received, per = explanation.received, " per image"
    lines = [f"\n{explanation.parameters:,} parameters; each image moves "]
    if images is not None:
        received, per = list(map(float, moved.received)), f" for a batch of {images}"
        lines = [f"\n{explanation.parameters:,} parameters; a step with {images} images moves "]
    lines[0] += bytes_text(sum(received))
    lines += [
        f"  rank {rank}: holds {held[rank]:,} parameters "
        f"({100 * held[rank] / max(1, explanation.parameters):.1f} %), receives "
        f"{bytes_text(received[rank])}{per}" + f" ({received[rank]:,.0f} bytes)" * bool(images)
        for rank in ranks
    ]
    lines += _whole_step(explanation)
    lines.append(f"exchange: before the layer; {_bytes_of(explanation)}: bytes that all ranks")
    lines.append("receive for it, forward and backward, in the model's precision")
    if {row.scheme for row in explanation.rows if row.mixes} == {"filters"}:
        lines.append("scheme: filters everywhere (every rank owns its output channels' filters)")
    if any(_exchange_text(row) == "as above" for row in explanation.rows):
        lines.append("as above: the value was gathered for an earlier layer and is used again")
    if explanation.hooked:
        number = len(explanation.hooked)
        parts = f"{number} part" + ("s" if number > 1 else "")
        lines.append(f"hooks on {parts} see whole values: the exchanges for that are counted")
    if explanation.modes:
        lines.append("training and evaluation run different operations: this shows training")
    return Text("\n".join(lines))


def _bytes_of(explanation: Explanation) -> str:
    return "per image" if explanation.images is None else f"{explanation.images} images"


def _whole_step(explanation: Explanation) -> list[str]:
    """Return lines on the exchanges that are those of a step, whatever its images are."""
    moved, lines = explanation.moved, []
    also = "also received in each step" if explanation.images is None else "of these"
    if moved.gradients[0]:
        lines.append(
            f"  {also}, by each rank: {bytes_text(moved.gradients[0])} for the sum of the "
            f"gradients of {moved.replicated:,} parameters"
        )
        lines.append("    that every rank holds whole")
    if moved.statistics[0]:
        norms = f"{moved.norms} batch norm{'s' * (moved.norms > 1)}"
        lines.append(
            f"  {also}, by each rank: {bytes_text(moved.statistics[0])} for the statistics of "
            f"{norms} over all images"
        )
    return lines


def _fallback_text(rows: Sequence[LayerRow], per: str) -> Text:
    lines = [f"{len(rows)} operation{'s' if len(rows) > 1 else ''} computed whole on every rank:"]
    lines += [
        f"  {row.name or 'the module'}: {row.kind}: {row.reason}"
        + (f"; {bytes_text(sum(row.received))} {per} to gather" if row.received else "")
        for row in rows
    ]
    return Text("\n".join(lines), style="yellow")
