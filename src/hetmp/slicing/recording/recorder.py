"""Records steps of a sliced model on this rank: each operation and exchange, with its times."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from hetmp.exchange import BackwardSum, Counter, Exchange
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.recording.stopwatch import PHASE, Mark, Stopwatch
from hetmp.slicing.schedule import (
    BiasStep,
    CallStep,
    ExchangeStep,
    HookedStep,
    Program,
    ProgramStep,
    owners,
)

START, LOSS = "start", "loss"
PHASES = (START, LOSS, "agreeing", "optimizer")
"""The phases of a step besides operations: before the forward pass, between it and the backward
pass, agreeing on whether all went well, and the optimizer."""

INPUTS, PARAMETERS = "(inputs)", "(parameters)"
"""The exchanges at the entry, which sum the gradients of replicated tensors."""


@dataclass(frozen=True)
class Done:
    """An interval of computation.

    Attributes:
        name: of the operation, or of the phase.
        part: ``forward``, ``backward``, ``parameters`` (their gradients, where they are computed
            apart) or ``phase``.
        layer: the mixing layer that it counts to; empty before the first, and for a phase.
        began, ended: seconds on this rank's ``time.perf_counter``.
    """

    name: str
    part: str
    layer: str
    began: float
    ended: float


@dataclass(frozen=True)
class ExchangeSpan:
    """One exchange at one of the model's exchange places.

    Attributes:
        place: the number of the place, the same on all ranks.
        spans: when the rank was at it: to begin it, and to wait for it.
        bytes: that this rank received.
    """

    place: int
    spans: tuple[tuple[float, float], ...]
    bytes: int

    @property
    def seconds(self) -> float:
        """The seconds that the rank spent on it."""
        return sum(ended - began for began, ended in self.spans)


@dataclass(frozen=True)
class ExchangePlace:
    """A place in the model where exchanges happen, in one direction.

    Attributes:
        layer: the mixing layer that it counts to.
        name: of the exchanged value, for the reader.
        collective: the MPI collective, ``-`` where nothing moves.
        direction: ``forward`` or ``backward``.
    """

    layer: str
    name: str
    collective: str
    direction: str
    counter: Counter = field(repr=False)


@dataclass(frozen=True)
class StepRecording:
    """One step on this rank, in the order in which things happened.

    Attributes:
        saved: bytes that a forward pass kept for the backward pass, where they were counted.
    """

    began: float
    ended: float
    done: tuple[Done, ...]
    meetings: tuple[ExchangeSpan, ...]
    saved: int


class Recorder:
    """Records the steps of a sliced model; results are the same with and without it.

    Attributes:
        places: where the model exchanges, the same on all ranks; new hooks add to them.
        layers: the mixing layers in the order in which they run, after "" for what is before them.
    """

    def __init__(self, model: SlicedModel, device: torch.device) -> None:
        self._runtime, self._device = model.hetmp, device
        program = model.hetmp.schedule.training
        self._model = model
        self._owner: dict[str, str] = {}
        self._titles: dict[str, str] = {}
        self.places: tuple[ExchangePlace, ...] = ()
        self._look(program)
        self.layers = tuple(dict.fromkeys(["", *self._owner.values()]))

    def title(self, name: str) -> str:
        """Return the name of an operation for the reader."""
        return self._titles.get(name, name)

    @contextmanager
    def step(self, into: list[StepRecording], memory: bool = False) -> Iterator[None]:
        """Record a step, and add it *into* the list where it ends without an error.

        The caller reports phase changes to ``model.hetmp.watch``.

        Args:
            memory: count what is saved for the backward pass, which takes time of its own.
        """
        watch = self._runtime.watch = Stopwatch(self._device)
        before = {id(place.counter): place.counter.bytes for place in self.places}
        for place in self.places:
            place.counter.log = []
        self._runtime.logs_new = True
        try:
            watch.phase(START)
            with watch.memory(self._model) if memory else nullcontext():
                yield
            watch.phase("")
            self._look(self._runtime.running(0).program)
            into.append(self._record(watch, before))
        finally:
            self._runtime.watch, self._runtime.logs_new = None, False
            for place in self.places:
                place.counter.log = None

    def _look(self, program: Program) -> None:
        """Add what there is new in *program*; the numbers of places stay as they are."""
        flat = replace(program, steps=program.flat)
        self._owner = owners(flat) | self._owner
        self._titles = {step.name: self._title(step) for step in flat.steps} | self._titles
        known = {id(place.counter) for place in self.places}
        places = self._places(self._model, flat)
        self.places += tuple(place for place in places if id(place.counter) not in known)

    def _title(self, step: ProgramStep) -> str:
        if isinstance(step, CallStep):
            return step.title
        if isinstance(step, BiasStep):
            return step.parameter
        if isinstance(step, HookedStep):
            return f"hooks on {step.title}"
        return f"exchange for {self._owner[step.name]}"

    def _record(self, watch: Stopwatch, before: dict[int, int]) -> StepRecording:
        meetings = []
        for number, place in enumerate(self.places):
            log = place.counter.log or []
            had = before.get(id(place.counter), 0)
            moves = len(log) // 2  # each is begun and waited for
            for first in range(0, 2 * moves, 2):
                received = (place.counter.bytes - had) // moves
                meetings.append(ExchangeSpan(number, tuple(log[first : first + 2]), received))
        meetings.sort(key=lambda meeting: meeting.spans[0])
        marks = watch.marks
        passes = sum(mark.part == "began" for mark in marks)
        return StepRecording(
            marks[0].wall,
            marks[-1].wall,
            self._done(marks),
            tuple(meetings),
            sum(watch.saved.values()) // max(1, passes),
        )

    def _done(self, marks: list[Mark]) -> tuple[Done, ...]:
        done = []
        for mark, following in pairwise(marks):
            name, part = mark.name, mark.part
            if part in ("began", "made"):
                # A forward pass runs from mark to mark; after its last comes the loss.
                name, part = (
                    (following.name, "forward") if following.part == "made" else (LOSS, PHASE)
                )
            done.append(Done(name, part, self._owner.get(name, ""), mark.wall, following.wall))
        return tuple(done)

    def _places(self, model: SlicedModel, program: Program) -> tuple[ExchangePlace, ...]:
        names = {
            id(self._runtime.exchange(0, step)): step.name
            for step in program.steps
            if isinstance(step, ExchangeStep)
        }
        paths = {step.node.path: step.name for step in program.steps if isinstance(step, CallStep)}
        places = []
        for path, module in model.named_modules():
            if module in (self._runtime.input_entry, self._runtime.parameter_entry):
                assert isinstance(module, BackwardSum)
                what = INPUTS if module is self._runtime.input_entry else PARAMETERS
                places.append(
                    ExchangePlace("", what, "Allreduce", "backward", module.backward_counter)
                )
            elif any(module is entry for entry in self._runtime.hook_entries.values()):
                assert isinstance(module, BackwardSum)
                places.append(
                    ExchangePlace(
                        "", module.value, "Allreduce", "backward", module.backward_counter
                    )
                )
            if not isinstance(module, Exchange) or self._of_evaluation(module, names):
                continue
            if id(module) in names:
                layer = name = self._owner[names[id(module)]]
            else:  # within a layer, such as a norm over all channels
                name = path.rpartition(".")[0]
                layer = self._owner.get(paths.get(name, ""), "")
            there, back = module.collective, module.backward_collective
            places += [
                ExchangePlace(layer, name, there, "forward", module.forward_counter),
                ExchangePlace(layer, name, back, "backward", module.backward_counter),
            ]
        return tuple(places)

    def _of_evaluation(self, exchange: Exchange, names: dict[int, str]) -> bool:
        """Return whether an exchange belongs only to the evaluation program."""
        return id(exchange) not in names and any(
            exchange is other for other in self._runtime.exchanges
        )


def computed(record: StepRecording) -> dict[tuple[str, str], float]:
    """Return seconds of a step without exchanges, by (layer, part); a phase is its own layer."""
    begins = [done.began for done in record.done]
    totals: dict[tuple[str, str], float] = {}

    def add(done: Done, seconds: float) -> None:
        key = (done.name if done.part == PHASE else done.layer), done.part
        totals[key] = totals.get(key, 0.0) + seconds

    for done in record.done:
        add(done, done.ended - done.began)
    for meeting in record.meetings:
        for began, ended in meeting.spans:
            add(record.done[max(0, bisect_right(begins, began) - 1)], began - ended)
    return totals
