"""Holds a sliced architecture against the unsliced one, and says what slicing it means."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hetmp
from cases.architectures import Architecture, tensors
from helpers.comparison import MIXING, Differences, mean_loss, rank_loss, seeded, sgd
from hetmp.core.state import FULL
from hetmp.ops import filled
from hetmp.slicing.graph import ModelGraph, Node, Trace
from hetmp.slicing.schedule import CallStep, ExchangeStep
from hetmp.slicing.scheduler import schedule_model
from hetmp.tools.explain import explain

STEPS = 2

CONVOLUTIONS = {"linear", *(f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3))}
"""Functions that do what a layer that mixes channels does."""

MULTIPLYING = ("convolution", "_convolution", "addmm", "mm")
"""torch's operations that convolutions and linear layers come down to."""


@dataclass(frozen=True)
class Figures:
    """What slicing an architecture means, without running it.

    Attributes:
        nodes: how many operations it has.
        fallbacks: those that every rank computes whole, for want of a rule.
        work: of convolutions and linear layers, floating point operations.
        whole: the part of it that every rank computes, from 0 to 1.
        held: the share of the parameters that each rank holds.
        exchanged: bytes per image that all ranks receive, forward and backward.
    """

    nodes: int
    fallbacks: tuple[str, ...]
    work: float
    whole: float
    held: tuple[float, ...]
    exchanged: float


def figures(architecture: Architecture, weights: Sequence[float]) -> Figures:
    """What slicing *architecture* means. No MPI."""
    graph = hetmp.read_graph(architecture.build(), architecture.arguments(torch.float32))
    return figures_of(graph, hetmp.plan_from_weights(graph, weights))


def figures_of(graph: ModelGraph, plan: hetmp.Plan) -> Figures:
    """What *plan* means for the network of *graph*."""
    trace, program = graph.training, schedule_model(graph, plan).training
    calls = [step for step in program.steps if isinstance(step, CallStep)]
    work = [(_work(step.node, trace), step) for step in calls]
    total = sum(some for some, _ in work)
    whole = sum(some for some, step in work if step.after == FULL)  # all of it, by every rank
    explained = explain(graph, plan)
    moved = (step for step in program.steps if isinstance(step, ExchangeStep))
    return Figures(
        nodes=len(trace.nodes),
        fallbacks=tuple(node.call.title for node in trace.nodes if node.reason is not None),
        work=total,
        whole=whole / max(total, 1),
        held=tuple(held / explained.parameters for held in explained.held),
        exchanged=sum(step.received_by_all(plan.ranks) for step in moved),
    )


def _work(node: Node, trace: Trace) -> int:
    """Floating point operations of convolutions and linear layers in one operation."""
    call = node.call
    if call.layer is None:
        if call.title not in CONVOLUTIONS:
            return 0
        weight = call.argument(1, "weight")
        transposed = call.title.startswith("conv_transpose")
        over = call.operand if transposed else call.result
        return 2 * math.prod(over.sizes[0]) * math.prod(trace.values[weight.name].sizes[0][1:])
    if not any(isinstance(part, MIXING) for part in call.layer.modules()):
        return 0
    dtype = next(call.layer.parameters()).dtype

    def stand_in(value: Any) -> Any:
        if value.is_tensor:
            return torch.empty(value.sizes[0], dtype=dtype, device="meta")
        return tuple(map(stand_in, value.items))

    args, kwargs = filled((call.args, call.kwargs), lambda name: stand_in(trace.values[name]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call.layer(*args, **kwargs)
    counted = counter.get_flop_counts()["Global"]
    return sum(count for what, count in counted.items() if what.__name__ in MULTIPLYING)


def compare(
    architecture: Architecture, weights: Sequence[float], schemes: str = "filters"
) -> tuple[Differences, hetmp.SlicedModel]:
    """Train the sliced and the unsliced model for some steps; what differs is returned.

    Outputs and gradients of every step are compared, of the inputs too, and every parameter and
    buffer after the last. Every rank has a loss of its own, over all tensors that the model gives.
    Collective.
    """
    module = seeded(architecture.build)
    reference = copy.deepcopy(module)
    example = architecture.arguments(torch.float64)
    model = hetmp.slice_model(module, weights, example_input=example, schemes=schemes)
    del module  # large ones fill the memory
    differences = Differences(model, reference)
    rank, ranks = model.hetmp.group.rank, model.hetmp.group.size
    optimizers = [sgd(model.parameters()), sgd(reference.parameters())]
    for step in range(STEPS):
        given, mine = (_inputs(architecture, step) for _ in range(2))
        for optimizer in optimizers:
            optimizer.zero_grad()
        expected = _called(reference, given)
        sum(mean_loss(one, ranks, step) for one in expected if one.requires_grad).backward()
        outputs = _called(model, mine)
        sum(rank_loss(one, rank, step) for one in outputs if one.requires_grad).backward()
        differences.note_gradients()
        when = f"step {step}"
        assert len(outputs) == len(expected)
        for number, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
            differences.compare(f"{when}, output {number}", output, wanted)
        for number, (one, other) in enumerate(zip(tensors(mine), tensors(given), strict=True)):
            differences.compare(f"{when}, gradient of input {number}", one.grad, other.grad)
        differences.compare_gradients(when)
        for optimizer in optimizers:
            optimizer.step()
    differences.compare_state()
    return differences, model


def _inputs(architecture: Architecture, seed: int) -> Any:
    given = architecture.arguments(torch.float64, seed)
    for tensor in tensors(given):
        tensor.requires_grad_()
    return given


def _called(model: nn.Module, given: Any) -> list[Tensor]:
    return tensors(model(**given) if isinstance(given, Mapping) else model(*given))
