"""Make the programs of a model whose parts have hooks. Pure, no MPI.

A part with hooks becomes one step, which calls it with whole values. What it takes is gathered in
front of it, handed to the hooks, and cut again inside; likewise what it returns. So every other
step sees its values in the states that they have without hooks, and no parameter is cut otherwise.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout
from hetmp.core.state import FULL, State
from hetmp.ops import Ref, references
from hetmp.slicing.graph import ModelGraph, ModuleCall, Node, Trace, place, rebuilt
from hetmp.slicing.plan import Plan
from hetmp.slicing.schedule import (
    CallStep,
    ExchangeStep,
    HookedStep,
    Program,
    ProgramStep,
    Schedule,
    WriteStep,
)
from hetmp.slicing.scheduler import PlannedChoice, Scheduler, tensors_state


def schedule_hooked(
    graph: ModelGraph, plan: Plan, schedule: Schedule, paths: Collection[str]
) -> Schedule:
    """Make the programs of *graph* under *plan* with hooks on the parts at *paths*. Not collective.

    Args:
        graph: the model.
        plan: of its layers.
        schedule: what runs without hooks.
        paths: of the parts that have hooks.

    Raises:
        HetmpError: a part would be cut otherwise than without hooks.
    """
    scheduler = _HookedScheduler(graph, PlannedChoice(plan), paths)
    programs = {id(trace): scheduler.program(trace) for trace in graph.traces}
    hooked = Schedule(plan.ranks, {mode: programs[id(t)] for mode, t in graph.modes.items()})
    for own, plain in zip(hooked.programs, schedule.programs, strict=True):
        runs = {step.name: step.run for step in plain.steps if isinstance(step, CallStep)}
        for step in own.flat:
            if isinstance(step, CallStep) and step.run != runs.get(step.name, step.run):
                raise HetmpError(
                    f"hooks on {', '.join(map(repr, sorted(paths)))} would change how "
                    f"{step.node.place} is cut: put them on the parts around these"
                )
    return hooked


class _HookedScheduler(Scheduler[Layout]):
    """Makes one step of each call of a part with hooks."""

    def __init__(self, graph: ModelGraph, choice: PlannedChoice, paths: Collection[str]) -> None:
        super().__init__(graph, choice)
        self._paths, self._number = paths, 0
        # What hooks have seen of each value: (tensor that entered or left, path of the part).
        self._seen: dict[str, list[tuple[str, str]]] = {}
        self._written: set[str] = set()

    def program(self, trace: Trace) -> Program:
        """Make the program of one mode."""
        self.begin(trace)
        self._seen.clear()
        calls = [call for call in trace.calls if call.path in self._paths and call.nodes]
        wanted = {node.name for node in trace.nodes}.union(*(call.unused for call in calls))
        calls = [replace(c, nodes=tuple(n for n in c.nodes if n in wanted)) for c in calls]
        self._visit_all([node for node in trace.every if node.name in wanted], calls)
        program = self.end()
        needed = set(program.returned)
        return replace(program, steps=_needed(program.steps, needed, self._written))

    def visit(self, node: Node) -> None:
        """Add the steps of an operation; what hooks have seen changes with the value."""
        super().visit(node)
        seen = self._seen.pop(self.trace.changes.get(node.name, ""), [])
        if not seen:
            return
        path = seen[0][1]
        if node.scope.checkpoint is not None:
            raise HetmpError(
                f"hooks on {path!r} see a value that {node.place} changes in place inside a "
                "gradient checkpoint: use inplace=False there"
            )
        value, self._seen[node.name] = self.current[node.name], seen
        full, written = self.in_state(value, FULL), f"{node.name} written"
        names = tuple(name for name, _ in seen)
        self._written |= set(names)
        self.steps.append(WriteStep(written, (full,), node.scope, path, names))
        # It goes on from there, so that its gradient comes back there on every rank.
        self._bring(node.name, written, tensors_state(self.states[value]))

    def _visit_all(self, nodes: Sequence[Node], calls: Sequence[ModuleCall]) -> None:
        """Add the steps of operations in a row, with one step for each of the outermost *calls*."""
        at, ahead = 0, list(calls)
        while at < len(nodes):
            call = next((c for c in ahead if c.nodes[0] == nodes[at].name), None)
            if call is None:
                self.visit(nodes[at])
                at += 1
                continue
            ahead.remove(call)
            inner = [c for c in ahead if set(c.nodes) <= set(call.nodes)]
            ahead = [c for c in ahead if c not in inner]
            inside = nodes[at : at + len(call.nodes)]
            self._call(call, inside, inner)
            at += len(inside)

    def _call(self, call: ModuleCall, nodes: Sequence[Node], inner: Sequence[ModuleCall]) -> None:
        """Add the step of a call, and of what takes its result apart again."""
        self.scope = call.scope
        key, self._number = f"{call.path} with hooks {self._number}", self._number + 1
        values = self.trace.values
        taken = [n for n in dict.fromkeys(references((call.args, call.kwargs))) if _is(n, values)]
        returned = [n for n in dict.fromkeys(references(call.result)) if _is(n, values)]
        states = {name: tensors_state(self.states[self.current[name]]) for name in taken}
        full = {name: self.in_state(self.current[name], FULL) for name in taken}
        outer = self.steps, self.exchanged, self.current
        self.steps, self.exchanged, self.current = [], dict(self.exchanged), dict(self.current)
        enters = {name: f"{name} into {key}" for name in taken}
        for name, entered in enters.items():
            self._bring(name, entered, states[name])
            self._seen.setdefault(name, []).append((entered, call.path))
        self._visit_all(nodes, inner)
        self.scope = call.scope
        own = {name: tensors_state(self.states[self.current[name]]) for name in returned}
        results = {name: self.in_state(self.current[name], FULL) for name in returned}
        leaves = {name: f"{name} out of {key}" for name in returned}
        after = set(call.changed.values())
        fixed = {enters[n] for n in call.changed if n in enters} | {
            leaves[n] for n in after & {*returned}
        }
        made, ran = self.current, tuple(self.steps)
        self.steps, self.exchanged, self.current = outer
        self.current |= {node.name: made[node.name] for node in nodes}
        args, kwargs = (
            rebuilt(part, lambda item: _entering(item, enters, self.current))
            for part in (call.args, call.kwargs)
        )
        result = rebuilt(call.result, lambda item: _entering(item, leaves, made))
        cuts = {enters[n]: s for n, s in states.items()} | {leaves[n]: s for n, s in own.items()}
        self.steps.append(
            HookedStep(
                name=key,
                sources=(),
                scope=call.scope,
                path=call.path,
                title=place(call.path, self.graph.skeleton.get_submodule(call.path)),
                args=args,
                kwargs=kwargs,
                entering={enters[name]: value for name, value in full.items()},
                result=result,
                leaving={leaves[name]: value for name, value in results.items()},
                fixed=frozenset(fixed),
                kept=frozenset(),
                cuts=cuts,
                exports=(),
                inside=Program({}, {}, ran, ()),
            )
        )
        for name, left in leaves.items():
            self._bring(name, left, own[name])
            self._seen.setdefault(name, []).append((left, call.path))

    def _bring(self, name: str, value: str, state: State[Layout]) -> None:
        """Let *name* stand for a full *value* from here on, in the *state* that is needed."""
        self.states[value], self.known[value] = FULL, self.trace.values[name]
        self.current[name] = self.in_state(value, state)
        self.exchanged[self.current[name], FULL] = value


def _is(name: str, values: Mapping[str, Any]) -> bool:
    return bool(values[name].is_tensor)


def _entering(item: object, names: Mapping[str, str], current: Mapping[str, str]) -> object:
    """Return a reference to a tensor as it enters or leaves, to another value as it is."""
    if not isinstance(item, Ref):
        return item
    return Ref(names.get(item.name, current.get(item.name, item.name)))


def _needed(
    steps: Sequence[ProgramStep], needed: set[str], written: set[str]
) -> tuple[ProgramStep, ...]:
    """Return the steps without exchanges whose result nothing takes; *needed* is added to.

    *written* are the tensors seen by hooks that are written to later.
    """
    kept: list[ProgramStep] = []
    for step in reversed(steps):
        if isinstance(step, ExchangeStep) and step.name not in needed:
            continue
        completed = _completed(step, needed, written) if isinstance(step, HookedStep) else step
        needed |= set(completed.sources)
        kept.append(completed)
    return tuple(reversed(kept))


def _completed(step: HookedStep, needed: set[str], written: set[str]) -> HookedStep:
    """Return *step* with what it takes from outside and hands on besides its result."""
    made = set(_made(step.inside.steps))
    exports = tuple(sorted(made & needed))
    results = {n for n in references(step.result) if n not in step.leaving}
    own = {*step.leaving.values(), *exports, *results}
    wanted = set(own)
    steps = _needed(step.inside.steps, wanted, written)
    inside = Program({}, {}, steps, tuple(Ref(name) for name in sorted(own)))
    arguments = {n for n in references((step.args, step.kwargs)) if n not in step.entering}
    foreign = wanted - made - set(step.entering) - set(_made(steps))
    sources = (*step.entering.values(), *sorted(arguments | foreign))
    return replace(
        step,
        sources=tuple(dict.fromkeys(sources)),
        exports=exports,
        kept=frozenset(step.cuts) & written,
        inside=inside,
    )


def _made(steps: Sequence[ProgramStep]) -> Iterator[str]:
    """Yield the names of the values that *steps* make, at any depth."""
    for step in steps:
        if isinstance(step, HookedStep):
            yield from step.leaving
            yield from _made(step.inside.steps)
        else:
            yield step.name
