"""The kind of work of an operation, and the share of it that a rank does."""

from typing import Any, Literal

from hetmp.core.state import Sliced
from hetmp.ops import OperatorRun
from hetmp.slicing.schedule import CallStep

Kind = Literal["filters", "inputs", "channelwise"]
"""``filters`` or ``inputs``, the scheme of a layer that mixes channels; else ``channelwise``."""


def work(run: OperatorRun) -> tuple[Kind, Sliced | None]:
    """Return (kind of work, state whose share a rank computes) of an operator's run.

    The state is None if every rank does all of the work.
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
    """Return (signature, kind, state whose share a rank computes) of a step."""
    kind, state = work(step.run)
    return step.run.call.signature, kind, state
