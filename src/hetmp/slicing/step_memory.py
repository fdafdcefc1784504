"""What each rank holds at most in a training step: the program's values, run through it.

What is held, forward and then backward: parameters and the optimizer's state all the time; what
the operations save, until they have run backward; parameters' gradients, from then on; and the
gradients of values, from the first operation that gives one to the operation that made the value.
Of layers that are computed again, what is kept instead until then, and what they save after that.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hetmp.core.state import Sliced, at_arrival
from hetmp.exchange import ROUND_BYTES
from hetmp.ops import Value
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.schedule import BiasStep, CallStep, ExchangeStep, Program, ProgramStep, takers
from hetmp.slicing.segments import Segment
from hetmp.slicing.table import Table

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MemoryOptions:
    """What decides how much memory a step takes, besides the plan.

    Attributes:
        optimizer_states: numbers that the optimizer keeps for each parameter: 1 for SGD with
            momentum, 2 for AdamW.
        packing: where exchanged values are packed: in memory that the ranks ``share``, where a
            gathered value then lies once for all; in each rank's ``own``; in that of a ``host``
            beside the device, which is not counted; or nowhere, where exchanges are rehearsed.
    """

    optimizer_states: float = 1.0
    packing: Literal["share", "own", "host", "nowhere"] = "own"


def held_bytes(table: Table, ranks: int) -> Array:
    """Return (ranks,) bytes of the parameters that each rank holds."""
    held = np.zeros(ranks)
    for name in table:
        held += _held(table, name, ranks)
    return held


def _held(table: Table, name: str, ranks: int) -> Array:
    """Return (ranks,) bytes of a parameter that each rank holds; none of an alias or a buffer."""
    entry = table[name]
    if not entry.parameter or entry.alias_of is not None:
        return np.zeros(ranks)
    size = entry.shape.numel() * entry.dtype.itemsize
    if not isinstance(entry.state, Sliced):
        return np.full(ranks, float(size))
    layout = entry.state.layout
    return np.array(layout.counts) * float(size // max(1, layout.total))


def step_memory(
    graph: ModelGraph,
    program: Program,
    table: Table,
    saved: Mapping[str, Array],
    images: int,
    options: MemoryOptions,
    segments: Sequence[Segment] = (),
    regathered: Collection[str] = (),
) -> Array:
    """Return (ranks,) bytes: the most that each rank holds in a training step.

    Args:
        graph: the model.
        program: its steps in training.
        table: the sliced tensors.
        saved: (ranks,) bytes that each operation keeps for its backward pass, by step.
        images: of the step.
        options: what decides besides.
        segments: what the backward pass computes again.
        regathered: the exchanges that it repeats for parameters' gradients.
    """
    ranks = len(next(iter(saved.values())))
    back = needing_gradients(graph, program)
    held = held_bytes(table, ranks)
    steps = {step.name: step for step in program.steps}
    let_go = {*regathered, *(gather.name for segment in segments for gather in segment.gathers)}
    kept, shared = _kept(program, saved, images, options, let_go, ranks)
    again = _kept_again(segments, kept, steps, images, ranks)
    # Layers whose parameter gradients are computed while their input's gradient travels.
    ends_with = {name: [name] for name in steps}
    for name, step in steps.items():
        if name in back:
            layers, _ = takers(program, step)
            for layer in layers:
                ends_with[layer.name] = []
                ends_with[name].append(layer.name)
    remaining: Array = sum(kept.values(), start=np.zeros(ranks))
    gradients, peak = np.zeros(ranks), remaining
    values: dict[str, Array] = {}  # the gradients that are there
    for step in reversed(program.steps):
        if step.name not in back:
            continue
        for name, size in again.pop(step.name, {}).items():
            kept[name] = kept.get(name, np.zeros(ranks)) + size
            remaining = remaining + size
        values.setdefault(step.name, _result_bytes(step, images, ranks))
        for name, size in _source_bytes(step, images, ranks).items():
            if name in back:
                values.setdefault(name, size)
        for name in ends_with[step.name]:
            gradients = gradients + _gradient_bytes(steps[name], table, ranks)
        passing = sum(values.values(), start=np.zeros(ranks))
        if isinstance(step, ExchangeStep) and options.packing == "own" and ranks > 1:
            passing = passing + values[step.name]
            if step.name in regathered:
                passing = passing + step.value.image_bytes * images
        peak = np.maximum(peak, remaining + gradients + passing)
        for name in ends_with[step.name]:
            remaining = remaining - kept.pop(name, 0.0)
            values.pop(name, None)
    return np.asarray((1 + options.optimizer_states) * held + np.maximum(peak, held) + shared)


def needing_gradients(graph: ModelGraph, program: Program) -> set[str]:
    """Return the names of the steps that need a gradient in the backward pass."""
    parameters = dict(graph.skeleton.named_parameters())
    needing = {name for name, place in program.attributes.items() if place in parameters}
    for step in program.steps:
        learns = isinstance(step, CallStep) and step.run.layer is not None and any(
            parameter.requires_grad for parameter in step.run.layer.parameters()
        )  # fmt: skip
        if learns or isinstance(step, BiasStep) or any(name in needing for name in step.sources):
            needing.add(step.name)
    return needing


def _kept(
    program: Program,
    saved: Mapping[str, Array],
    images: int,
    options: MemoryOptions,
    let_go: Collection[str],
    ranks: int,
) -> tuple[dict[str, Array], float]:
    """Return what each step keeps for itself, and each rank's part of what one host's ranks share.

    Nobody keeps the results of the exchanges *let_go*. Where values are gathered through shared
    memory, they lie there, once for all ranks, and so do the summands of the gradients, in rounds;
    that memory stays when a value is gone.
    """
    kept = {name: size.copy() for name, size in saved.items()}
    gathered, largest = 0.0, 0.0
    for step in program.steps:
        layers, _ = takers(program, step)
        if not layers or not isinstance(step, ExchangeStep):
            continue
        size = float(step.value.image_bytes * images)
        own = ranks > 1 and options.packing in ("own", "host")
        if not own or step.name in let_go:
            # What is gathered from one rank is that rank's own, and kept by who made it.
            kept[layers[0].name] = np.maximum(0.0, kept[layers[0].name] - size)
        gathered, largest = gathered + size * (step.name not in let_go), max(largest, size)
    if ranks == 1 or options.packing != "share":
        return kept, 0.0
    return kept, (gathered + min(2 * ROUND_BYTES, 1.5 * largest * (ranks - 1))) / ranks


def _kept_again(
    segments: Sequence[Segment],
    kept: dict[str, Array],
    steps: Mapping[str, ProgramStep],
    images: int,
    ranks: int,
) -> dict[str, dict[str, Array]]:
    """Take from *kept* what the steps of segments keep, but for what is kept instead.

    Returns:
        For the last step of each segment, what its steps save when they run again.
    """
    again: dict[str, dict[str, Array]] = {}
    for segment in segments:
        names = [step.name for step in segment.steps if step.name in kept]
        again[segment.steps[-1].name] = {name: kept[name] for name in names}
        kept.update(dict.fromkeys(names, np.zeros(ranks)))
        shares = {gather.sources[0] for gather in segment.gathers}
        head = segment.steps[0].name
        for name in shares & steps.keys():
            kept[head] = kept[head] + _result_bytes(steps[name], images, ranks)
    return again


def _gradient_bytes(step: ProgramStep, table: Table, ranks: int) -> Array:
    """Return (ranks,) bytes of the gradients of a step's parameters."""
    if not isinstance(step, CallStep) or step.run.layer is None:
        return np.zeros(ranks)
    size = np.zeros(ranks)
    for own, parameter in step.run.layer.named_parameters():
        place = f"{step.node.path}.{own}" if step.node.path else own
        if parameter.requires_grad and place in table:
            size += _held(table, place, ranks)
    return size


def _result_bytes(step: ProgramStep, images: int, ranks: int) -> Array:
    """Return (ranks,) bytes of a step's result as it lies on the ranks."""
    if isinstance(step, CallStep):
        return _bytes(step.run.call.result, step.after, images, ranks)
    if isinstance(step, ExchangeStep):
        return _bytes(step.value, step.after, images, ranks)
    return np.zeros(ranks)


def _source_bytes(step: ProgramStep, images: int, ranks: int) -> dict[str, Array]:
    """Return (ranks,) bytes of the gradient of each value that a step takes, by name."""
    if isinstance(step, ExchangeStep):
        return {step.sources[0]: _bytes(step.value, step.before, images, ranks)}
    if isinstance(step, CallStep):
        return {
            step.inputs[name]: _bytes(value, step.run.flow.wants.get(name), images, ranks)
            for name, value in step.run.call.values.items()
            if name in step.inputs
        }
    return {}


def _bytes(value: Value, state: object, images: int, ranks: int) -> Array:
    """Return (ranks,) bytes of a value in a state; all of it where it is whole or a summand."""
    whole = float(value.image_bytes * images)
    arrived = at_arrival(state, images) if isinstance(state, Sliced) else state
    if not isinstance(arrived, Sliced) or not arrived.layout.total:
        return np.full(ranks, whole)
    return whole * np.array(arrived.layout.counts) / arrived.layout.total
