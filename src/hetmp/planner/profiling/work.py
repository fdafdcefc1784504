"""What a rank does of an operation, and how much of it."""

from typing import Any, Literal

from hetmp.core.state import Sliced
from hetmp.ops import OperatorRun
from hetmp.slicing.schedule import CallStep

Kind = Literal["filters", "inputs", "channelwise"]
"""``filters`` or ``inputs``, the scheme of a layer that mixes channels; else ``channelwise``."""


def work(run: OperatorRun) -> tuple[Kind, Sliced | None]:
    """What kind of work a run is, and the state whose share says how much a rank does of it.

    The state is None where every rank does all of it.
    """
    if run.scheme is not None and run.scheme.cuts_inputs:
        return "inputs", run.source if isinstance(run.source, Sliced) else None
    if run.scheme is not None:
        return "filters", run.target if isinstance(run.target, Sliced) else None
    states: list[Any] = [run.target, *run.flow.wants.values()]
    while states:
        state = states.pop(0)
        if isinstance(state, Sliced):
            return "channelwise", state
        if isinstance(state, tuple):
            states += state
    return "channelwise", None


def step_work(step: CallStep) -> tuple[str, Kind, Sliced | None]:
    """(signature, kind, state whose share is done) of a step."""
    kind, state = work(step.run)
    return step.run.call.signature, kind, state
