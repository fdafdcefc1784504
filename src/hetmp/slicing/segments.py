"""Which steps of a program the backward pass computes again, for a layer that is recomputed.

A layer's segment is the layer with the steps behind it that run once more exactly as they did, up
to the next layer that mixes channels. It ends earlier in front of code of the user's, which may do
something else the second time, of a part with hooks, which see every value once, and of what takes
a value that is changed in place: by then it is another one. Pure, no MPI.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL, Sliced
from hetmp.ops import references, runs_own_code, shares_memory
from hetmp.slicing.graph import ModelGraph, Trace
from hetmp.slicing.plan import Backward, Plan
from hetmp.slicing.schedule import (
    CallStep,
    ExchangeStep,
    HookedStep,
    Program,
    ProgramStep,
    Schedule,
    WriteStep,
    takers,
)


@dataclass(frozen=True)
class Segment:
    """The steps that ``recompute`` of one call of a layer repeats in the backward pass.

    Attributes:
        layer: the path of the layer, whose call is the first step.
        steps: the steps, in order, the exchanges between them included.
        gathers: the exchanges that gather what the layer takes, and that are repeated in front of
            the steps. The gathered value is not kept; its share, which the exchange takes, is.
        sources: the values that are kept instead of all that the steps save.
        reason: why the layer cannot be computed again; None where it can.
    """

    layer: str
    steps: tuple[ProgramStep, ...]
    gathers: tuple[ExchangeStep, ...]
    sources: tuple[str, ...]
    reason: str | None


def layer_segments(
    graph: ModelGraph, schedule: Schedule, plan: Plan, *, regather: bool = False
) -> dict[str, tuple[Segment, ...]]:
    """Return the segments of every layer in training, one for each of its calls, by its path.

    They are what ``recompute`` of that layer would repeat, whatever *plan* says of it; the other
    layers are as *plan* says, and as *regather* says (``Tuning.regather``) where it says nothing.
    That decides whether a value that several layers take is gathered again: one of them may keep
    it.
    """
    backward = plan.backward_by_layer(regather)
    by_layer: dict[str, tuple[Segment, ...]] = {}
    for layer in plan.layers:
        own = segments(schedule.training, graph.training, {**backward, layer.name: "recompute"})
        by_layer[layer.name] = tuple(x for x in own if x.layer == layer.name)
    return by_layer


def segments(
    program: Program, trace: Trace, backward: Mapping[str, Backward]
) -> tuple[Segment, ...]:
    """Return the segments of the layers that are recomputed, those in parts with hooks included.

    Args:
        program: of *trace*.
        trace: says which operations work in place.
        backward: what the backward pass has of each layer, by its path.
    """
    chosen = {path for path, choice in backward.items() if choice == "recompute"}
    if not chosen:
        return ()
    return tuple(_Reader(program, trace, backward, chosen).all(program))


def regathered(program: Program, backward: Mapping[str, Backward]) -> frozenset[str]:
    """Return the exchanges that the backward pass repeats for parameters' gradients.

    Args:
        program: the steps.
        backward: what the backward pass has of each layer, by its path.
    """
    repeated = []
    for step in program.steps:
        choices = {backward.get(taker.node.path, "keep") for taker in takers(program, step)[0]}
        if "regather" in choices and "keep" not in choices:
            repeated.append(step.name)
    return frozenset(repeated)


def can_be_recomputed(graph: ModelGraph, schedule: Schedule, plan: Plan) -> list[str]:
    """Return the layers that ``check_recomputed`` refuses in no program, by path, in order."""
    everywhere: dict[str, Backward] = {layer.name: "recompute" for layer in plan.layers}
    own = [
        segment
        for program, trace in zip(schedule.programs, graph.traces, strict=True)
        for segment in segments(program, trace, everywhere)
    ]
    refused = {segment.layer for segment in own if segment.reason is not None}
    begun = {segment.layer for segment in own} - refused
    return [layer.name for layer in plan.layers if layer.name in begun]


def check_recomputed(graph: ModelGraph, schedule: Schedule, plan: Plan) -> None:
    """Refuse a plan that recomputes a layer which cannot be computed again exactly.

    Raises:
        HetmpError: naming the layer, the reason and the remedy.
    """
    for program, trace in zip(schedule.programs, graph.traces, strict=True):
        for segment in segments(program, trace, plan.backward_by_layer(regather=False)):
            if segment.reason is not None:
                raise HetmpError(
                    f"layer {segment.layer!r} cannot be recomputed: {segment.reason}; let its "
                    "backward be 'keep' or 'regather' in the plan"
                )


class _Reader:
    """Finds the segments of a program.

    Args:
        chosen: the layers that are recomputed.
    """

    def __init__(
        self, program: Program, trace: Trace, backward: Mapping[str, Backward], chosen: set[str]
    ) -> None:
        self._backward, self._chosen = backward, chosen
        self._memory = _Memory(program, trace)

    def all(self, program: Program) -> list[Segment]:
        """Return the segments of *program*, in the order in which they run."""
        inside: list[Segment] = []
        begun: list[Segment] = []
        for at, step in enumerate(program.steps):
            if isinstance(step, HookedStep):
                inside += self.all(step.inside)
            elif isinstance(step, CallStep) and step.node.path in self._chosen and _mixes(step):
                begun.append(self._begun(program, at))
        again = {segment.steps[0].name for segment in begun if segment.reason is None}
        return inside + [self._with_gathers(program, segment, again) for segment in begun]

    def _begun(self, program: Program, at: int) -> Segment:
        """Return the segment of the layer that runs at a place, all its sources kept."""
        head = program.steps[at]
        assert isinstance(head, CallStep)
        own: list[ProgramStep] = [head]
        made = {head.name}
        for step in program.steps[at + 1 :]:
            if _mixes(step) or self._why_not(step, made, head) is not None:
                break
            own.append(step)
            made.add(step.name)
        while isinstance(own[-1], ExchangeStep):  # which belongs to what takes its result
            own.pop()
        reason = self._why_not(head, set(), head)
        return Segment(head.node.path, tuple(own), (), _sources(own), reason)

    def _why_not(self, step: ProgramStep, made: set[str], head: ProgramStep) -> str | None:
        """Return why a step cannot run once more in the segment of *head*, or None.

        *made* are the values of the steps in front of it.
        """
        if isinstance(step, HookedStep | WriteStep):
            return "hooks see its values"
        if step.scope.checkpoint is not None:
            return "it is in a gradient checkpoint of the module's own, which computes it again"
        if step.scope.hooks:
            return "the module has hooks on what it saves (saved_tensors_hooks)"
        if isinstance(step, CallStep) and runs_own_code(step.node.call):
            return "it runs code of yours, which may do something else the second time"
        for source in step.sources:
            by = None if source in made else self._memory.changed_by(source, head)
            if by is not None:
                return f"{by!r} changes what it takes in place, so that it is gone by then"
        return None

    def _with_gathers(self, program: Program, segment: Segment, again: Collection[str]) -> Segment:
        """Return *segment* with the gathers of what nobody keeps, and the shares kept instead."""
        gathers = [
            step
            for step in program.steps
            if isinstance(step, ExchangeStep)
            and step.name in segment.steps[0].sources
            and isinstance(step.before, Sliced)
            and step.after == FULL
            and self._is_let_go(program, step, segment, again)
        ]
        shares = {gather.name: gather.sources[0] for gather in gathers}
        sources = dict.fromkeys(shares.get(name, name) for name in segment.sources)
        return replace(segment, gathers=tuple(gathers), sources=tuple(sources))

    def _is_let_go(
        self, program: Program, gather: ExchangeStep, segment: Segment, again: Collection[str]
    ) -> bool:
        """Return whether nothing keeps the result of *gather* for the backward pass.

        *again* are the layers of *program* that are computed again.
        """
        if gather.name in program.returned:
            return False
        mixing, _ = takers(program, gather)
        choices = {taker.name: self._backward[taker.node.path] for taker in mixing}
        if "keep" in choices.values():
            return False
        regathered = (name for name, choice in choices.items() if choice == "regather")
        letting_go = {*again, *regathered, *(step.name for step in segment.steps)}
        return all(step.name in letting_go for step in program.consumers.get(gather.name, []))


class _Memory:
    """Which values of a program share memory, and where that is changed in place."""

    def __init__(self, program: Program, trace: Trace) -> None:
        self._first: dict[str, str] = {}
        self._places = {step.name: place for place, step in enumerate(program.flat)}
        self._changes: list[tuple[int, str, str]] = []
        for place, step in enumerate(program.flat):
            if isinstance(step, HookedStep):
                for name, source in (*step.entering.items(), *step.leaving.items()):
                    self._join(name, source)
            elif isinstance(step, ExchangeStep):
                self._join(step.name, step.sources[0])
            elif isinstance(step, WriteStep):
                for name in (*step.seen, step.sources[0]):
                    self._join(step.name, name)
                self._changes.append((place, step.name, step.path))
            elif isinstance(step, CallStep):
                changes = step.node.name in trace.changes
                taken = list(references((step.node.call.args, step.node.call.kwargs)))
                if changes and taken:
                    self._join(step.name, step.inputs[taken[0]])
                    self._changes.append((place, step.name, step.title))
                elif _is_view(step):
                    for source in step.sources:
                        self._join(step.name, source)

    def changed_by(self, value: str, head: ProgramStep) -> str | None:
        """Return what changes a value in place from the step *head* on, or None."""
        first = self._first_of(value)
        for place, name, title in self._changes:
            if place >= self._places[head.name] and self._first_of(name) == first:
                return title
        return None

    def _join(self, name: str, source: str) -> None:
        self._first[self._first_of(source)] = self._first_of(name)

    def _first_of(self, name: str) -> str:
        while self._first.get(name, name) != name:
            name = self._first[name]
        return name


def _is_view(step: CallStep) -> bool:
    call = step.node.call
    target = call.target if call.layer is None else call.whole_layer
    return shares_memory(target, len(call.operands))


def _mixes(step: ProgramStep) -> bool:
    return isinstance(step, CallStep) and step.node.rule.mixes


def _sources(steps: Sequence[ProgramStep]) -> tuple[str, ...]:
    """Return the values that *steps* take from outside."""
    made = {step.name for step in steps}
    taken = dict.fromkeys(name for step in steps for name in step.sources)
    return tuple(name for name in taken if name not in made)
