"""Programs ready to run: each step with what is needed to run it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hetmp.core.state import FULL
from hetmp.ops import Statistics, Whole, may_draw, runs_own_code
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.schedule import CallStep, HookedStep, Program, ProgramStep, takers
from hetmp.slicing.segments import Segment
from hetmp.slicing.table import Table

BUNDLE = 4 * 2**20
"""Bytes: gradients of replicated parameters travel together from here on."""


@dataclass(frozen=True)
class Order:
    """One step of a program, with what is needed to run it.

    Attributes:
        step: the step.
        freed: the values that no later step takes.
        entered: of a layer, its own names of replicated parameters -> their names in the model.
        seeded: whether it may draw random numbers, which must be the same on all ranks.
        own: whether it runs a user's own code, which may draw whatever the mode is.
        takers: of an exchange that gathers, the mixing layers that take its result, and hold no
            replicated parameters.
        borrowed: whether nothing else takes the result, so that it is only read.
        statistics: of a batch or instance norm, how it takes them from its input.
        gathers_again: of an exchange, whether the backward pass repeats it for a layer that it
            computes again.
        inside: of a hooked part, the steps that its call runs.
    """

    step: ProgramStep
    freed: tuple[str, ...]
    entered: Mapping[str, str]
    seeded: bool
    own: bool
    takers: tuple[CallStep, ...]
    borrowed: bool
    statistics: Statistics | None
    gathers_again: bool = False
    inside: "tuple[Section, ...]" = ()


@dataclass(frozen=True)
class GradientCheckpoint:
    """Steps in a row that the backward pass computes again, as the module's own checkpoint says.

    Whatever they change, such as running statistics, they change both times, as in the module.

    Attributes:
        orders: the steps.
        sources: the values of earlier steps that they take.
        results: their values that later steps take, or that are returned.
        freed: the values of earlier steps that no later step takes.
    """

    orders: tuple[Order, ...]
    sources: tuple[str, ...]
    results: tuple[str, ...]
    freed: tuple[str, ...]


@dataclass(frozen=True)
class Recomputed(GradientCheckpoint):
    """Steps in a row that the backward pass computes again, as the plan says.

    They change nothing the second time.

    Attributes:
        layer: the path of the layer, which is the first step.
        gathered: gathered values that they take and that are not kept -> their shares, which are
            among the ``sources``.
    """

    layer: str
    gathered: Mapping[str, str]


Section = Order | GradientCheckpoint
"""What a program runs, one after the other."""


@dataclass(frozen=True)
class Running:
    """A program, ready to run.

    Attributes:
        program: its steps and what it returns.
        orders: its steps, in order.
        sections: the same, with the steps together that the backward pass computes again together.
        replicated: the names of its parameters that every rank holds whole, in the bundles in which
            their gradients travel.
    """

    program: Program
    orders: tuple[Order, ...]
    sections: tuple[Section, ...]
    replicated: tuple[tuple[str, ...], ...]


def step_key(mode: int, step: ProgramStep) -> str:
    """Return a name for a step that is unique over all programs and valid for a submodule."""
    return f"{mode}:{step.name}".replace(".", ":")


def made_ready(
    program: Program, graph: ModelGraph, table: Table, segments: Sequence[Segment] = ()
) -> Running:
    """Make *program*, of *graph*, ready to run on a model whose tensors are cut as *table* says.

    The backward pass computes its *segments* again.
    """
    orders = _orders(program, graph, table, segments)
    sections = _sections(orders, program, segments)
    return Running(program, orders, sections, bundles(program, graph, table))


def _orders(
    program: Program, graph: ModelGraph, table: Table, segments: Sequence[Segment]
) -> tuple[Order, ...]:
    # What is gathered again is needed as long as what was gathered.
    shares = {x.steps[0].name: [gather.sources[0] for gather in x.gathers] for x in segments}
    gathers = {gather.name for segment in segments for gather in segment.gathers}
    last = {
        source: i
        for i, step in enumerate(program.steps)
        for source in (*step.sources, *shares.get(step.name, ()))
    }
    freed: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in program.returned:
            freed.setdefault(i, []).append(name)
    orders = []
    for i, step in enumerate(program.steps):
        mixing, borrowed = takers(program, step)
        # Replicated parameters have entered already, with those of all layers.
        mixing = tuple(taker for taker in mixing if not entered_parameters(taker, graph, table))
        orders.append(
            Order(
                step,
                tuple(freed.get(i, ())),
                entered_parameters(step, graph, table),
                isinstance(step, CallStep)
                and isinstance(step.node.rule, Whole)
                and may_draw(step.node.call),
                isinstance(step, CallStep) and runs_own_code(step.node.call),
                mixing,
                borrowed,
                Statistics.of(step.node.call) if isinstance(step, CallStep) else None,
                step.name in gathers,
                _inside(step, graph, table, segments),
            )
        )
    return tuple(orders)


def _inside(
    step: ProgramStep, graph: ModelGraph, table: Table, segments: Sequence[Segment]
) -> tuple[Section, ...]:
    if not isinstance(step, HookedStep):
        return ()
    orders = _orders(step.inside, graph, table, segments)
    return _sections(orders, step.inside, segments)


def _sections(
    orders: Sequence[Order], program: Program, segments: Sequence[Segment]
) -> tuple[Section, ...]:
    """Put the steps of each checkpoint together, and those of each segment."""
    sections: list[Section] = []
    for number, group in itertools.groupby(orders, lambda order: order.step.scope.checkpoint):
        own = tuple(group)
        if number is None:
            sections += _recomputed(own, program, segments)
            continue
        made = {order.step.name for order in own}
        sources = dict.fromkeys(name for order in own for name in order.step.sources)
        outside = tuple(name for name in sources if name not in made)
        sections.append(GradientCheckpoint(own, outside, *_results(own, program)))
    return tuple(sections)


def _recomputed(
    orders: Sequence[Order], program: Program, segments: Sequence[Segment]
) -> Iterator[Section]:
    """Yield *orders*, those of each segment together."""
    begun = {segment.steps[0].name: segment for segment in segments}
    at = 0
    while at < len(orders):
        segment = begun.get(orders[at].step.name)
        if segment is None:
            yield orders[at]
            at += 1
            continue
        own = tuple(orders[at : at + len(segment.steps)])
        gathered = {gather.name: gather.sources[0] for gather in segment.gathers}
        results, freed = _results(own, program)
        yield Recomputed(own, segment.sources, results, freed, segment.layer, gathered)
        at += len(own)


def _results(orders: Sequence[Order], program: Program) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the values of *orders* that others take, and those of others that none takes later."""
    made = [order.step.name for order in orders]
    freed = dict.fromkeys(name for order in orders for name in order.freed)
    results = tuple(name for name in made if name not in freed and _is_taken(name, program))
    return results, tuple(name for name in freed if name not in made)


def _is_taken(name: str, program: Program) -> bool:
    return name in program.returned or name in program.consumers


def entered_parameters(step: ProgramStep, graph: ModelGraph, table: Table) -> dict[str, str]:
    """Return a layer's own names of replicated parameters -> their names in the model."""
    if not isinstance(step, CallStep) or step.run.layer is None:
        return {}
    path = step.node.path
    entries = {own: table.get(f"{path}.{own}") for own in step.node.rule.tensors(step.run.layer)}
    return {
        own: graph.aliases.get(entry.name, entry.name)
        for own, entry in entries.items()
        if entry is not None and entry.parameter and entry.state == FULL
    }


def bundles(program: Program, graph: ModelGraph, table: Table) -> tuple[tuple[str, ...], ...]:
    """Bundle the replicated parameters, in the order in which they are first needed.

    The bundles of the last ones are full: their gradients come first, and have most time to travel.
    """
    names: dict[str, None] = {}
    for path in program.attributes.values():
        # Of a parameter that is cut only its dtype and device are asked.
        if path in table and table[path].parameter and table[path].state == FULL:
            names[graph.aliases.get(path, path)] = None
    for step in program.steps:
        names |= dict.fromkeys(entered_parameters(step, graph, table).values())
    filled: list[list[str]] = []
    size = float("inf")
    for name in reversed(names):
        if size >= BUNDLE:
            filled.insert(0, [])
            size = 0
        filled[0].insert(0, name)
        size += table[name].shape.numel() * table[name].dtype.itemsize
    return tuple(map(tuple, filled))
