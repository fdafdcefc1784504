"""The time of each channel group, over all the work that uses its channels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hetmp.core.state import Sliced
from hetmp.planner.profiling import Kind, step_work
from hetmp.planner.tables import Array, Tables
from hetmp.slicing.channel_groups import ChannelGroups
from hetmp.slicing.schedule import CallStep, Schedule


@dataclass(frozen=True)
class GroupWork:
    """A piece of work that uses channels of a channel group.

    Attributes:
        work: signature of the work.
        kind: kind of the work.
        part: share of the work's channels that are the group's, from 0 to 1.
    """

    work: str
    kind: Kind
    part: float


def group_works(
    groups: ChannelGroups, schedule: Schedule, images: int
) -> dict[int, dict[GroupWork, int]]:
    """Count the work of each channel group, by the group's number.

    Work on slices of the batch belongs to none: see ``batch_works``.

    Args:
        groups: the channel groups of the model.
        schedule: the schedule of any plan for the model.
        images: of a step.

    Returns:
        By group number: each piece of work, and how often a training step does it.
    """
    works: dict[int, dict[GroupWork, int]] = {group.number: {} for group in groups.groups}
    units = {group.number: group.units for group in groups.groups}
    pieces_of: dict[str, tuple[tuple[int, int], ...]] = {}
    for step in schedule.training.steps:
        own: tuple[tuple[int, int], ...] = ()
        for source in step.sources:
            own = own or pieces_of.get(source, ())
        if isinstance(step, CallStep) and step.node.rule.mixes:
            inputs = own
            own = tuple((p.group.number, p.block) for p in groups.pieces[step.node.path])
            if step.run.scheme is not None and not step.run.scheme.cuts_outputs:
                own = ()
            work, kind, state = step_work(step, images)
            _add(works, units, inputs if kind == "inputs" else own, work, kind, state)
        elif isinstance(step, CallStep):
            work, kind, state = step_work(step, images)
            if isinstance(state, Sliced):
                own = _joined(step, pieces_of) or own
                _add(works, units, own, work, kind, state)
        pieces_of[step.name] = own
    return works


def _joined(
    step: CallStep, pieces_of: Mapping[str, tuple[tuple[int, int], ...]]
) -> tuple[tuple[int, int], ...]:
    """Return the pieces of all operands of a concatenation; empty for other operations."""
    if not step.node.rule.joins:
        return ()
    return tuple(piece for source in step.sources for piece in pieces_of.get(source, ()))


def _add(
    works: dict[int, dict[GroupWork, int]],
    units: Mapping[int, int],
    pieces: tuple[tuple[int, int], ...],
    work: str,
    kind: Kind,
    state: Sliced | None,
) -> None:
    total = sum(units[number] * block for number, block in pieces)
    if state is None or kind == "batch" or not total:
        return
    for number, block in pieces:
        share = GroupWork(work, kind, units[number] * block / total)
        works[number][share] = works[number].get(share, 0) + 1


def batch_works(schedule: Schedule, images: int) -> dict[str, int]:
    """Count the work of a step on slices of the batch, of so many *images*, by signature."""
    works: dict[str, int] = {}
    for step in schedule.training.steps:
        if isinstance(step, CallStep):
            work, kind, state = step_work(step, images)
            if kind == "batch" and state is not None and state.layout.total == images:
                works[work] = works.get(work, 0) + 1
    return works


def batch_times(tables: Tables, works: Mapping[str, int], images: int) -> Array:
    """Return (ranks, images + 1) seconds of a step, by rank and its number of *images*.

    *works* is what ``batch_works`` counts.
    """
    times = np.zeros((tables.ranks, images + 1))
    for work, often in works.items():
        total = tables.total(work, "batch")
        counts = np.round(np.arange(images + 1) * (total / images)).astype(np.int64)
        times += often * tables.sums(work, "batch", counts)
    return times


def group_times(tables: Tables, works: Mapping[GroupWork, int], units: int) -> Array:
    """Return (ranks, units + 1) seconds of a step, by rank and its number of a group's units.

    Args:
        tables: measured times of the ranks.
        works: the work that the group cuts, with how often a step does it.
        units: the length of the group's axis.
    """
    times = np.zeros((tables.ranks, units + 1))
    for work, often in works.items():
        total = tables.total(work.work, work.kind)
        # Of work that several groups share, each is charged as if all were cut as it is.
        counts = np.round(np.arange(units + 1) * (total / max(1, units))).astype(np.int64)
        times += often * work.part * tables.sums(work.work, work.kind, counts)
    return times
