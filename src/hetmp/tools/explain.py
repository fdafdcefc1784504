"""Explain a plan for a model: its layers, exchanges and channel groups. No MPI."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from hetmp.core.state import PARTIAL, Sliced
from hetmp.core.text import bytes_text
from hetmp.exchange import collective, share_shape
from hetmp.slicing import SlicedTensor, Table, make_table
from hetmp.slicing.channel_groups import ChannelGroups, channel_groups
from hetmp.slicing.graph import ModelGraph, Node
from hetmp.slicing.hooks import schedule_hooked
from hetmp.slicing.plan import Plan
from hetmp.slicing.schedule import CallStep, ExchangeStep, Schedule
from hetmp.slicing.scheduler import schedule_model

NAMED = 3
"""Most layers of a channel group to name."""


@dataclass
class LayerRow:
    """One layer, or one operation that needs an exchange.

    Attributes:
        name, kind: its path in the module, and its type.
        channels: number of its output channels; None if it has none of its own.
        counts: each rank's number of them.
        groups: numbers of the channel groups of its output.
        scheme: the scheme of a layer that mixes channels.
        exchanges: the collectives before it; after it for scheme ``inputs``.
        shared: the earlier layer for which the same value was exchanged.
        received: bytes per image that each rank receives, forward and backward together.
        reason: why every rank computes it whole, if it has no rule.
        mixes: whether it mixes channels, so that a plan has an entry for it.
    """

    name: str
    kind: str
    channels: int | None
    counts: tuple[int, ...]
    groups: str
    scheme: str
    exchanges: list[str] = field(default_factory=list)
    shared: str = ""
    received: list[float] = field(default_factory=list)
    reason: str = ""
    mixes: bool = False

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
        hooked: the parts that have hooks, whose exchanges are counted.
    """

    rows: tuple[LayerRow, ...]
    groups: ChannelGroups
    plan: Plan
    held: tuple[int, ...]
    parameters: int
    modes: bool
    hooked: tuple[str, ...] = ()

    @property
    def received(self) -> list[float]:
        """Return the bytes per image that each rank receives, forward and backward."""
        return [
            sum(row.received[rank] for row in self.rows if row.received)
            for rank in range(self.plan.ranks)
        ]


def explain(graph: ModelGraph, plan: Plan) -> Explanation:
    """Explain *plan* for the model of *graph*.

    Raises:
        HetmpError: the plan is for another model.
    """
    schedule = schedule_model(graph, plan)
    groups = channel_groups(graph)
    table = make_table(graph, schedule)
    hooked = tuple(filter(None, graph.hooked))
    shown = schedule_hooked(graph, plan, schedule, hooked) if hooked else schedule
    return Explanation(
        tuple(_rows(graph, plan, shown, groups)),
        groups,
        plan,
        tuple(_held(table, rank) for rank in range(plan.ranks)),
        sum(entry.shape.numel() for entry in _parameters(table)),
        len(schedule.programs) > 1,
        hooked,
    )


def _rows(
    graph: ModelGraph, plan: Plan, schedule: Schedule, groups: ChannelGroups
) -> list[LayerRow]:
    program = schedule.training
    rows: list[LayerRow] = []
    waiting: list[ExchangeStep] = []
    first_wanted: dict[str, str] = {}
    for step in program.flat:
        if isinstance(step, ExchangeStep):
            # A sum belongs to the layer that made its summands.
            if step.before == PARTIAL and rows and rows[-1].scheme == "inputs":
                _add(rows[-1], step, plan.ranks)
            else:
                waiting.append(step)
            first_wanted.setdefault(step.name, "")
        elif isinstance(step, CallStep):
            row = _row(step, plan, groups)
            for exchange in waiting:
                _add(row, exchange, plan.ranks)
                first_wanted[exchange.name] = row.name
            if not waiting:
                row.shared = next((first_wanted.get(name, "") for name in step.sources), "")
            waiting = []
            rows.append(row)
    if waiting:
        row = LayerRow("", "output", None, (), "", "")
        for exchange in waiting:
            _add(row, exchange, plan.ranks)
        rows.append(row)
    return rows


def _row(step: CallStep, plan: Plan, groups: ChannelGroups) -> LayerRow:
    node = step.node
    own = step.run.scheme
    scheme = own.name if own is not None else "whole" if node.reason else ""
    channels = node.rule.output_channels(node.call.whole_layer) if node.rule.mixes else None
    counts: tuple[int, ...] = ()
    if node.rule.mixes and scheme != "whole":
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


def _add(row: LayerRow, exchange: ExchangeStep, ranks: int) -> None:
    row.exchanges.append(collective(exchange.before, exchange.after))
    received = [sum(exchange.received(rank, ranks)) for rank in range(ranks)]
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
    parts: list[RenderableType] = [_layer_table(rows, explanation.plan.ranks, narrow)]
    parts += [_group_table(explanation), _totals(explanation)]
    fallbacks = [row for row in explanation.rows if row.reason]
    if fallbacks:
        parts.append(_fallback_text(fallbacks))
    return Lines(*parts)


def _layer_table(rows: Sequence[LayerRow], ranks: int, narrow: bool) -> RichTable:
    table = _table(f"Layers, and what each of the {ranks} ranks has of their channels")
    columns = {
        "layer": [row.name or row.kind for row in rows],
        "kind": ["" if row.kind == "output" else row.kind for row in rows],
        "channels": ["" if row.channels is None else str(row.channels) for row in rows],
        "partition": [
            "/".join(map(str, row.counts)) if row.counts else ("all" if row.mixes else "")
            for row in rows
        ],
        "group": [row.groups for row in rows],
        "scheme": [row.scheme for row in rows],
        "exchange": [_exchange_text(row) for row in rows],
        "per image": [bytes_text(sum(row.received)) if row.received else "" for row in rows],
    }
    if {row.scheme for row in rows if row.mixes} == {"filters"}:
        del columns["scheme"]
    if narrow:
        del columns["channels"]  # the partition sums to them
    for heading in columns:
        right = heading in ("channels", "per image")
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
    held = explanation.held
    received = explanation.received
    moved = bytes_text(sum(received))
    lines = [f"\n{explanation.parameters:,} parameters; each image moves {moved}"]
    lines += [
        f"  rank {rank}: holds {held[rank]:,} parameters "
        f"({100 * held[rank] / max(1, explanation.parameters):.1f} %), receives "
        f"{bytes_text(received[rank])} per image"
        for rank in ranks
    ]
    lines.append("exchange: before the layer; per image: bytes that all ranks receive for it,")
    lines.append("forward and backward, in the model's precision")
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


def _fallback_text(rows: Sequence[LayerRow]) -> Text:
    lines = [f"{len(rows)} operation{'s' if len(rows) > 1 else ''} computed whole on every rank:"]
    lines += [
        f"  {row.name or 'the module'}: {row.kind}: {row.reason}"
        + (f"; {bytes_text(sum(row.received))} per image to gather" if row.received else "")
        for row in rows
    ]
    return Text("\n".join(lines), style="yellow")
