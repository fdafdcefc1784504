"""Channel groups: axes that elementwise work ties must share one partition.

A module is scheduled once with axes whose partitions are not chosen yet: ``core/open_axis.py``.
Where two of them meet, they are tied instead of exchanged; what remains are the groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetmp.core.open_axis import Atom, Axis
from hetmp.core.partition import Layout, Partition, Piece, apportion, checked_weights
from hetmp.core.state import OperandState, Sliced
from hetmp.ops import SCHEMES, SchemeName
from hetmp.slicing.graph import ModelGraph, Node
from hetmp.slicing.layer_schemes import layer_schemes
from hetmp.slicing.plan import LayerPlan, Plan
from hetmp.slicing.scheduler import Scheduler

CRUMBS = 4
"""A layer with at least this many pieces of hardly more than a unit each is cut on its own."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be cut alike.

    Attributes:
        number: from 1, in the order in which the groups first run.
        units: how many there are to share out.
        layers: the layers that have them among their output channels.
    """

    number: int
    units: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ChannelPiece:
    """Part of a layer's output channels: *block* neighbouring ones for each unit of a group."""

    group: ChannelGroup
    block: int


@dataclass(frozen=True)
class ChannelGroups:
    """The channel groups of a module.

    Attributes:
        groups: all of them.
        pieces: the pieces of each mixing layer's output channels, by the layer's path.
    """

    groups: tuple[ChannelGroup, ...]
    pieces: dict[str, tuple[ChannelPiece, ...]]


def channel_groups(graph: ModelGraph) -> ChannelGroups:
    """Find which channels of *graph* must be cut alike."""
    axes = _Axes()
    reader = _Reader(graph, axes)
    for trace in graph.traces:
        reader.program(trace)
    numbers: dict[Atom, int] = {}
    layers: dict[Atom, list[str]] = {}
    for path, axis in axes.of.items():
        for atom, _ in axis.leaves:
            numbers.setdefault(atom, len(numbers) + 1)
            if path not in layers.setdefault(atom, []):
                layers[atom].append(path)
    groups = {
        atom: ChannelGroup(number, atom.length, tuple(layers[atom]))
        for atom, number in numbers.items()
    }
    pieces = {
        path: tuple(ChannelPiece(groups[atom], block) for atom, block in axis.leaves)
        for path, axis in axes.of.items()
    }
    return ChannelGroups(tuple(groups.values()), pieces)


def plan_from_weights(
    graph: ModelGraph,
    weights: Sequence[Any],
    schemes: str | Mapping[str, str] = "filters",
) -> Plan:
    """Make a plan whose channels and images are cut in proportion to *weights*.

    Args:
        graph: the model.
        weights: the ranks' relative speeds.
        schemes: of the mixing layers: see ``layer_schemes``. Layers that share a parameter with
            another layer follow ``whole`` where they would follow ``filters`` or ``inputs``.

    Raises:
        HetmpError: weights that cannot be used (see ``apportion``), or schemes.
    """
    exact = checked_weights(weights)
    grouping = channel_groups(graph)
    shares = {group.number: apportion(group.units, exact) for group in grouping.groups}
    return plan_from_shares(graph, grouping, shares, exact, layer_schemes(graph, schemes))


def plan_from_shares(
    graph: ModelGraph,
    grouping: ChannelGroups,
    shares: Mapping[int, Partition],
    weights: Sequence[Any],
    schemes: Mapping[str, SchemeName] | None = None,
) -> Plan:
    """Make a plan from the partition of each channel group.

    Args:
        grouping: the channel groups of *graph*.
        shares: how the units of each group are cut, by its number.
        weights: the ranks' speeds, for a layer whose groups are too small to be cut one by one,
            and for the batch.
        schemes: of mixing layers by path; the others follow ``filters``. Layers that share a
            parameter with another layer follow ``batch`` or ``whole``.
    """
    layers = []
    for node in graph.mixing():
        layout = Layout(
            tuple(
                Piece(shares[piece.group.number], piece.block)
                for piece in grouping.pieces[node.path]
            )
        )
        if _is_crumbled(layout) and node.rule.groups(node.call.whole_layer) == 1:
            layout = Layout.of(apportion(layout.total, weights))
        pieces = tuple(
            tuple(count * piece.block for count in piece.partition.counts)
            for piece in layout.pieces
        )
        scheme = (schemes or {}).get(node.path, "filters")
        if graph.is_tied(node) and not SCHEMES[scheme].cuts_batch:
            scheme = "whole"
        layers.append(
            LayerPlan(
                name=node.path,
                kind=type(node.call.whole_layer).__name__,
                channels=node.rule.output_channels(node.call.whole_layer),
                scheme=scheme,
                counts=layout.counts,
                pieces=pieces if len(pieces) > 1 else (),
                weights=tuple(map(float, weights)) if SCHEMES[scheme].cuts_batch else (),
            )
        )
    return Plan(ranks=layout.ranks, layers=tuple(layers))


def _is_crumbled(layout: Layout) -> bool:
    """Return whether ties left almost every unit on its own, as ``y[:, 1:] - y[:, :-1]`` does.

    Units that are apportioned one by one would all go to the same rank: exchanges cost less.
    """
    units = sum(piece.partition.total for piece in layout.pieces)
    return len(layout.pieces) >= CRUMBS and units < 2 * len(layout.pieces)


class _Axes:
    """A separate axis for every mixing layer, under scheme ``filters``."""

    def __init__(self) -> None:
        self.of: dict[str, Axis] = {}

    def scheme(self, node: Node) -> SchemeName:
        return "filters"

    def batch_weights(self, node: Node) -> tuple[float, ...]:
        return ()

    def layout(self, node: Node) -> Axis:
        channels = node.rule.output_channels(node.call.whole_layer)
        return self.of.setdefault(node.path, Axis.fresh(channels))


class _Reader(Scheduler[Axis]):
    """A scheduler that ties two axes where they meet."""

    def in_state(self, value: str, target: OperandState[Axis]) -> str:
        source = self.states[value]
        if (
            isinstance(source, Sliced)
            and isinstance(target, Sliced)
            and source.axis == target.axis
            and source.layout.tie(target.layout)
        ):
            return value
        return super().in_state(value, target)
