"""Schedules in words, and what holds in all of them."""

from collections.abc import Iterable

from hetmp.core.state import FULL, PARTIAL, Full, Partial, Sliced, is_batch
from hetmp.ops import references
from hetmp.slicing.schedule import BiasStep, CallStep, ExchangeStep, ProgramStep, Schedule

GATHER = "sliced -> full"


def told(steps: Schedule | Iterable[ProgramStep]) -> list[str]:
    """Each step: what is called, ``+ bias``, or the states of an exchange."""
    words = []
    for step in steps.steps if isinstance(steps, Schedule) else steps:
        if isinstance(step, CallStep):
            words.append(step.node.call.title)
        elif isinstance(step, BiasStep):
            words.append("+ bias")
        else:
            states = (step.before, step.after)
            words.append(" -> ".join(type(state).__name__.lower() for state in states))
    return words


WANTED = {
    "filters": (Full, Sliced),
    "inputs": (Sliced, Partial),
    "batch": (Sliced, Sliced),
    "whole": (Full, Full),
}
"""What a layer takes and gives by its scheme."""


def check_states(made: Schedule) -> None:
    """Every step takes values that were made, in the states in which they were made."""
    for program in made.programs:
        states = dict.fromkeys((*program.entries, *program.attributes), FULL)
        for step in program.steps:
            assert set(step.sources) <= set(states)
            assert step.name not in states
            states[step.name] = step.after
            if isinstance(step, ExchangeStep):
                assert step.before == states[step.sources[0]] != step.after
            elif isinstance(step, BiasStep):
                assert step.before == states[step.sources[0]] == step.after != PARTIAL
            else:
                for name, wanted in step.run.flow.wants.items():
                    assert states[step.inputs[name]] == wanted
                assert_scheme(step)
        assert all(states[name] == FULL for name in references(program.result))


def assert_scheme(step: CallStep) -> None:
    """A layer takes and gives what its scheme says; a grouped one keeps its slices."""
    before, after = step.before, step.after
    if step.run.scheme is None:
        assert before != PARTIAL
        return
    grouped = step.run.scheme.name == "filters" and getattr(step.run.layer, "groups", 1) > 1
    wanted = (Sliced, Sliced) if grouped else WANTED[step.run.scheme.name]
    for state, kind in zip((before, after), wanted, strict=True):
        assert isinstance(state, kind)
        assert is_batch(state) == (step.run.scheme.name == "batch")
