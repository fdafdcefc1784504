"""The steps of a sliced model, in order: operations, exchanges, biases. See ``scheduler``."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic

from hetmp.core.partition import Layout
from hetmp.core.state import FULL, PARTIAL, L, OperandState, Sliced, State
from hetmp.exchange import received, received_by_all, received_of_batch
from hetmp.ops import Cuts, Mixing, OperatorRun, Value, references
from hetmp.slicing.graph import EVALUATION, PLAIN, TRAINING, Mode, Node, Scope


@dataclass(frozen=True)
class ProgramStep:
    """One step of a program; ``name`` is also the name of its result.

    Attributes:
        sources: the values taken.
        scope: what the module sets around it. An exchange has only the checkpoint of that: the
            value that it moves may be taken outside, too.
    """

    name: str
    sources: tuple[str, ...]
    scope: Scope

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProgramStep":
        return self  # models that are copied share what never changes


@dataclass(frozen=True)
class CallStep(ProgramStep, Generic[L]):
    """A step that runs an operation.

    Attributes:
        inputs: the node's names for the values that it takes -> the values that it is given.
    """

    node: Node
    run: OperatorRun[L]
    inputs: Mapping[str, str]

    @property
    def title(self) -> str:
        """The step's name for the reader: the layer's path, or the function's name."""
        return self.node.path or self.run.call.title

    @property
    def before(self) -> OperandState[L]:
        """The state of the first operand."""
        return next(iter(self.run.flow.wants.values()), FULL)

    @property
    def after(self) -> OperandState[L]:
        """The state of the result."""
        return self.run.flow.gives

    @property
    def takes_filters(self) -> bool:
        """Whether a mixing layer computes its share of the filters from all channels."""
        full_to_sliced = self.run.source == FULL and isinstance(self.run.target, Sliced)
        return isinstance(self.node.rule, Mixing) and full_to_sliced

    @property
    def cuts(self) -> Cuts[L]:
        """How the layer's parameters and buffers are cut."""
        return {} if self.run.layer is None else self.node.rule.cuts(self.run)


@dataclass(frozen=True)
class ExchangeStep(ProgramStep, Generic[L]):
    """A step that exchanges a value between operations.

    Attributes:
        before, after: the states it leads from and to.
        value: the facts known about the value.
    """

    before: State[L]
    after: State[L]
    value: Value

    def received(self: "ExchangeStep", rank: int, ranks: int) -> tuple[float, float]:
        """Return the bytes per image that *rank* receives: (forward, backward)."""
        return received(self.before, self.after, rank, self.value.image_bytes, ranks)

    def received_of_batch(
        self: "ExchangeStep", images: int, rank: int, ranks: int
    ) -> tuple[int, int]:
        """Return the bytes that *rank* receives for a batch of so many *images*, to the byte.

        Forward and backward, in the model's precision. Where the batch is cut, the shares of a
        short one are not quite those of the weights.
        """
        size = images * self.value.image_bytes
        return received_of_batch(self.before, self.after, rank, size, ranks, images)

    def received_by_all(self: "ExchangeStep", ranks: int) -> float:
        """Return the bytes per image that all ranks receive, in both directions."""
        return received_by_all(self.before, self.after, self.value.image_bytes, ranks)


@dataclass(frozen=True)
class BiasStep(ProgramStep, Generic[L]):
    """A step that adds the bias of an ``inputs`` layer, once, after its reduction.

    Attributes:
        before, after: the state of the value, which stays.
        parameter: the bias's name in the user's ``state_dict``.
        axis: the activation's channel axis.
    """

    before: State[L]
    after: State[L]
    parameter: str
    axis: int


@dataclass(frozen=True)
class HookedStep(ProgramStep):
    """A step that calls a part of the module with whole values, for its hooks.

    Outside and inside, values keep the states that they have without hooks. Its results are the
    values in ``leaving`` and ``exports``.

    Attributes:
        path, title: the part's place in the module, and its name for the reader.
        args, kwargs: what it is called with: a ``Ref`` to every value, to tensors as they enter.
        entering: tensors as they enter -> the full values outside.
        result: what it returns: a ``Ref`` to every value, to tensors as they leave.
        leaving: tensors as they leave -> the full values inside.
        fixed: tensors among these that no hook may replace: the part works on them in place.
        kept: tensors among these that are written to later, as a hook may have kept them.
        cuts: of tensors that enter and leave, the state that they are needed in.
        exports: other values made inside that steps outside take.
        inside: the steps that the call runs.
    """

    path: str
    title: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    entering: Mapping[str, str]
    result: object
    leaving: Mapping[str, str]
    fixed: frozenset[str]
    kept: frozenset[str]
    cuts: Mapping[str, State[Layout]]
    exports: tuple[str, ...]
    inside: "Program"


@dataclass(frozen=True)
class WriteStep(ProgramStep):
    """A step that writes a full value into what hooks saw of it before it was changed in place.

    Attributes:
        path: of a part whose hooks did.
        seen: the tensors, as they entered or left.
    """

    path: str
    seen: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """The steps of one of the module's modes, in order.

    Attributes:
        entries: the values that the user gives: name -> name of the input.
        attributes: parameters, buffers and constants that are values: name -> place.
        result: what is returned, with a ``Ref`` for every value; all of them are full.
    """

    entries: Mapping[str, str]
    attributes: Mapping[str, str]
    steps: tuple[ProgramStep, ...]
    result: Any

    @cached_property
    def returned(self) -> frozenset[str]:
        """The names of the values that are returned."""
        return frozenset(references(self.result))

    @cached_property
    def flat(self) -> tuple[ProgramStep, ...]:
        """The steps in the order in which they run, those inside of hooked parts included."""
        flat: list[ProgramStep] = []
        for step in self.steps:
            flat += (*step.inside.flat, step) if isinstance(step, HookedStep) else (step,)
        return tuple(flat)

    @cached_property
    def consumers(self) -> dict[str, list[ProgramStep]]:
        """The steps that take each value, by the value's name."""
        consumers: dict[str, list[ProgramStep]] = {}
        for step in self.steps:
            for name in dict.fromkeys(step.sources):
                consumers.setdefault(name, []).append(step)
        return consumers


@dataclass(frozen=True)
class Schedule:
    """The programs for all modes; often one and the same object."""

    ranks: int
    modes: Mapping[Mode, Program]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Schedule":
        return self

    @property
    def training(self) -> Program:
        """The program for training."""
        return self.modes[TRAINING]

    @property
    def evaluation(self) -> Program:
        """The program for evaluation mode, for a caller who computes gradients."""
        return self.modes[EVALUATION]

    @property
    def programs(self) -> tuple[Program, ...]:
        """The distinct programs, training's first: one where all modes run the same steps."""
        return tuple({id(program): program for program in self.modes.values()}.values())

    @property
    def numbers(self) -> dict[Mode, int]:
        """The index of each mode's program."""
        numbers = {id(program): number for number, program in enumerate(self.programs)}
        return {mode: numbers[id(program)] for mode, program in self.modes.items()}

    @property
    def steps(self) -> tuple[ProgramStep, ...]:
        """The steps of all programs, those of training first."""
        return tuple(step for program in self.programs for step in program.steps)


def takers(program: Program, step: ProgramStep) -> tuple[tuple[CallStep, ...], bool]:
    """Return the ``filters`` layers that take a gathered value, and whether nothing else takes it.

    Their parameter gradients are computed while the gradient of the gathered value travels.
    """
    name = step.name
    if not isinstance(step, ExchangeStep) or step.after != FULL or step.before == PARTIAL:
        return (), False
    if name in program.returned:
        return (), False
    consumers = program.consumers.get(name, [])
    mixing = tuple(
        other
        for other in consumers
        if isinstance(other, CallStep) and other.takes_filters and other.scope == PLAIN
    )
    return mixing, len(mixing) == len(consumers)


def owners(program: Program) -> dict[str, str]:
    """Return the path of the mixing layer that each step counts to, by the step's name.

    Channel-wise work counts to the last such layer before it, an exchange to the one that takes
    its result. Steps before the first layer have an empty path.
    """
    owner_of: dict[str, str] = {}
    last, waiting = "", []
    for step in program.steps:
        if isinstance(step, ExchangeStep):
            waiting.append(step.name)
            continue
        if isinstance(step, CallStep) and step.node.rule.mixes:
            last = step.node.path
        owner_of[step.name] = last
        owner_of.update(dict.fromkeys(waiting, last))
        waiting = []
    owner_of.update(dict.fromkeys(waiting, last))
    return owner_of
