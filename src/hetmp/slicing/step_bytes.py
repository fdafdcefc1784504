"""The bytes that every rank receives in a training step: arithmetic on a schedule, no MPI.

Of a batch of so many images they are those that the exchanges count, to the byte, where all ranks
compute in the model's precision and every trained parameter gets a gradient.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hetmp.core.state import is_batch
from hetmp.exchange import received_of_sum
from hetmp.ops import Statistics
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.orders import bundles
from hetmp.slicing.schedule import CallStep, ExchangeStep, Schedule
from hetmp.slicing.table import Table


@dataclass(frozen=True)
class StepBytes:
    """What every rank receives in a step: bytes by rank, forward and backward together.

    Attributes:
        activations: by the exchanges between the layers; of a batch, the only ones that grow.
        gradients: by the sum of the gradients of the parameters that every rank holds whole.
        statistics: by the batch norms that run on slices of the batch.
        replicated: the number of the values whose gradients are summed.
        norms: how often such a batch norm runs.
    """

    activations: tuple[int, ...]
    gradients: tuple[int, ...]
    statistics: tuple[int, ...]
    replicated: int
    norms: int

    @property
    def received(self) -> tuple[int, ...]:
        """The bytes of all exchanges, by rank."""
        kinds = (self.activations, self.gradients, self.statistics)
        return tuple(map(sum, zip(*kinds, strict=True)))


def step_bytes(graph: ModelGraph, schedule: Schedule, table: Table, images: int) -> StepBytes:
    """Return the bytes of a training step with a batch of so many *images*.

    Args:
        graph: the model, read with images of the size that they have.
        schedule, table: how it is cut.
        images: of the batch.
    """
    program, ranks = schedule.training, schedule.ranks
    exchanges = [step for step in program.flat if isinstance(step, ExchangeStep)]
    activations = tuple(
        sum(sum(step.received_of_batch(images, rank, ranks)) for step in exchanges)
        for rank in range(ranks)
    )
    trained = {name for name, p in graph.skeleton.named_parameters() if p.requires_grad}
    gradients = replicated = 0
    for bundle in bundles(program, graph, table):
        entering = [table[name] for name in bundle if name in trained]
        replicated += sum(entry.shape.numel() for entry in entering)
        for dtype in {entry.dtype for entry in entering}:
            # With them travels, of each, whether a rank has a gradient of it.
            numbers = sum(entry.shape.numel() + 1 for entry in entering if entry.dtype is dtype)
            gradients += received_of_sum(numbers * max(4, dtype.itemsize), ranks)
    norms = list(_norms(graph, schedule))
    statistics = sum(
        (ranks - 1) * (2 * channels + 1) * size + received_of_sum(2 * channels * size, ranks)
        for channels, size in norms
    )
    return StepBytes(
        activations,
        (gradients,) * ranks,
        (statistics,) * ranks,
        replicated,
        len(norms),
    )


def _norms(graph: ModelGraph, schedule: Schedule) -> Iterator[tuple[int, int]]:
    """Yield (channels, bytes of a number) of each batch norm that takes statistics of all ranks."""
    for step in schedule.training.flat:
        if not isinstance(step, CallStep) or step.run.layer is None or schedule.ranks == 1:
            continue
        statistics = Statistics.of(step.node.call)
        if statistics is None or statistics.per_image or not is_batch(step.run.source):
            continue
        if statistics.always or step.node.path not in graph.held[True]:
            operand = step.node.call.operand
            size = operand.image_bytes // max(1, math.prod(operand.sizes[0][1:]))
            yield operand.sizes[0][1], max(size, torch.float32.itemsize)
