"""Choose what the backward pass gathers or computes again, where a step does not fit in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hetmp.planner.splits import Split, Splitter
from hetmp.slicing.plan import Backward
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.segments import can_be_recomputed


@dataclass(frozen=True)
class _Saving:
    """What one layer's choice saves of the memory that is lacking, and what it costs.

    Attributes:
        layer: its path.
        choice: ``regather`` or ``recompute``.
        seconds: more of a step.
        memory: bytes less, summed over the ranks that lack memory.
    """

    layer: str
    choice: Backward
    seconds: float
    memory: float


def save_memory(splitter: Splitter, split: Split) -> Split | None:
    """Return *split* with the least predicted time that fits in memory; None if none does.

    Each layer may keep its gathered input, gather it again, or be computed again. Savings are taken
    in the order of bytes saved per second lost, as each is predicted for itself, until the whole
    step is predicted to fit. A very large model or cluster has the same choice for all layers.
    """
    layers = [node.path for node in splitter.model.graph.mixing()]
    plan = split.plan(splitter.model)
    can = can_be_recomputed(splitter.model.graph, schedule_model(splitter.model.graph, plan), plan)
    if 2 * len(layers) <= splitter.affordable:
        savings = list(_savings(splitter, split, can))
        savings.sort(key=lambda saving: saving.seconds / saving.memory)
        steps = [{saving.layer: saving.choice} for saving in savings]
    else:
        everywhere: tuple[tuple[list[str], Backward], ...] = (
            (layers, "regather"),
            (can, "recompute"),
        )
        steps = [dict.fromkeys(names, choice) for names, choice in everywhere]
    return _first_that_fits(splitter, split, steps)


def _savings(splitter: Splitter, split: Split, can: list[str]) -> Iterator[_Saving]:
    """Yield what each choice for a single layer saves."""
    before = splitter.predict(split)
    lacking = np.array(splitter.limits) > 0
    lacking &= before.memory > np.array(splitter.limits)
    for node in splitter.model.graph.mixing():
        choices: tuple[Backward, ...] = ("regather", "recompute")
        for choice in choices[: 2 if node.path in can else 1]:
            after = splitter.predict(replace(split, backward={node.path: choice}))
            memory = float((before.memory - after.memory)[lacking].sum())
            if memory > 0:
                seconds = max(0.0, after.seconds - before.seconds)
                yield _Saving(node.path, choice, seconds, memory)


def _first_that_fits(
    splitter: Splitter, split: Split, steps: list[dict[str, Backward]]
) -> Split | None:
    """Return *split* with the fewest of *steps*, from the first on, that fit; None if none do."""

    def with_first(number: int) -> Split:
        chosen: dict[str, Backward] = {}
        for step in steps[:number]:
            for layer, choice in step.items():
                if chosen.get(layer) != "recompute":
                    chosen[layer] = choice
        return replace(split, backward=chosen)

    if not steps or not splitter.fits(splitter.predict(with_first(len(steps)))):
        return None
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        if splitter.fits(splitter.predict(with_first(middle))):
            high = middle
        else:
            low = middle
    return with_first(high)
