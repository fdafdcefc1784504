"""The kind of work of an operation, and the share of it that a rank does."""

from collections.abc import Mapping
from typing import Any, Literal

from hetmp.core.errors import HetmpError
from hetmp.core.state import Sliced, at_arrival, is_batch
from hetmp.ops import OperatorRun, SchemeName
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.layer_schemes import layer_schemes
from hetmp.slicing.schedule import CallStep
from hetmp.slicing.scheduler import schedule_model

Kind = Literal["filters", "inputs", "channelwise", "batch"]
"""``batch``, any operation on a rank's part of the images; else ``filters`` or ``inputs``, the
scheme of a layer that mixes channels, and ``channelwise`` for the other operations."""


def work(run: OperatorRun) -> tuple[Kind, Sliced | None]:
    """Return (kind of work, state whose share a rank computes) of an operator's run.

    The state is None if every rank does all of the work.
    """
    if run.scheme is not None and run.scheme.cuts_batch:
        return "batch", run.target if isinstance(run.target, Sliced) else None
    if run.scheme is not None and run.scheme.cuts_inputs:
        return "inputs", run.source if isinstance(run.source, Sliced) else None
    if run.scheme is not None:
        return "filters", run.target if isinstance(run.target, Sliced) else None
    states: list[Any] = [run.target, *run.flow.wants.values()]
    while states:
        state = states.pop(0)
        if isinstance(state, Sliced):
            return "batch" if is_batch(state) else "channelwise", state
        if isinstance(state, tuple):
            states += state
    return "channelwise", None


def batch_everywhere(graph: ModelGraph) -> Mapping[str, SchemeName]:
    """Return scheme ``batch`` for every layer that can follow it, by path.

    Nothing where the model cannot run so, as one that mixes images outside of its layers.
    """
    try:
        schedule_model(graph, plan_from_weights(graph, (1, 1), "batch"))
    except HetmpError:
        return {}
    return layer_schemes(graph, "batch")


def step_work(step: CallStep, images: int) -> tuple[str, Kind, Sliced | None]:
    """Return (signature, kind, state whose share a rank computes) of a step.

    The state is that of a batch of so many *images*: where these are shared, their layout says how
    many each rank has.
    """
    kind, state = work(step.run)
    arrived = None if state is None else at_arrival(state, images)
    return step.run.call.signature, kind, arrived if isinstance(arrived, Sliced) else None
