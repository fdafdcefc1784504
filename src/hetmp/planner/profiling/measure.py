"""Measure a rank's time for its share of a model, as a function of the share.

The whole model runs, forward, backward and the optimizer's step, with the exchanges rehearsed
(see ``exchange/rehearsal.py``), so that every operation is measured in the place, with the
caches and the memory format, in which it will run. Shares are chosen adaptively: first a few,
then the middles of intervals where a straight line misses the time (functional performance
models: Clarke, Lastovetsky, Rychkov and Zhong, FuPerMod, 2013).
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from hetmp.cluster import RehearsalGroup
from hetmp.cluster.machine import quota_period
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Partition
from hetmp.ops import Mixing, SchemeName
from hetmp.planner.profiling.profile import OPTIMIZER, THOUSANDTHS, Workspace, WorkTimes
from hetmp.planner.profiling.work import Kind, batch_everywhere, step_work
from hetmp.slicing import SlicedModel, Tuning
from hetmp.slicing.channel_groups import ChannelGroups, channel_groups, plan_from_shares
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.plan import Plan
from hetmp.slicing.recording import PeakMeter, StepTimes, Stopwatch
from hetmp.slicing.rehearsal import rehearsal_model
from hetmp.slicing.schedule import CallStep, ExchangeStep, Program
from hetmp.slicing.step_memory import MemoryOptions, held_bytes, step_memory

INTERVAL = 0.05
"""Repeat until the 95 % interval of a step's mean time is this narrow, relative to the mean."""

REPEATS = (2, 12)
"""The fewest and the most repeats of a share."""

PERIODS = 20
"""How many periods of a CPU quota a measurement spans at least."""

GRID = 16
"""Most shares are measured at multiples of this, which vector units fill."""

MISS = 0.05
"""Halve an interval while a straight line misses the time in its middle by more than this."""

FIRST = 1 / 16, 1 / 4, 1.0, 1 / 2, 0.0
"""The shares to measure first."""

LEAST = 2
"""Shares to measure however long they take: one alone gives no slope."""

MORE: dict[SchemeName, tuple[float, ...]] = {"batch": (1 / 4, 3 / 4), "inputs": (1 / 4, 1.0, 1 / 2)}
"""The shares at which layers are measured under other schemes; in the number of images, time is
nearly a line."""


@dataclass(frozen=True)
class Budget:
    """Limits of a measurement.

    Attributes:
        seconds: time on this rank; the first shares are measured even if they take longer.
        schemes: those under which layers are measured besides ``filters``, the first ones first.
    """

    seconds: float = 60.0
    schemes: tuple[SchemeName, ...] = tuple(MORE)


@dataclass
class _Sample:
    """One piece of work at one share; *count* is None if all of it is done."""

    work: str
    kind: Kind
    count: int | None
    total: int | None
    times: tuple[float, float, float]
    saved: float


class ShareMeter:
    """The measurement of one rank's device. Not collective: ranks of a host run it in parallel.

    Args:
        graph: the graph of the model.
        example: the arguments of a call, with the batch to measure.
        memory: bytes that this rank may use; 0 if unknown.
        slowdown: see ``cluster/slowdown.py``.
    """

    def __init__(
        self,
        graph: ModelGraph,
        example: Any,
        device: torch.device,
        tuning: Tuning,
        memory: int,
        slowdown: float = 1.0,
    ) -> None:
        self.graph, self.device, self.tuning = graph, device, tuning
        self.args, self.kwargs = _arguments(example, device)
        self.images, _ = batch_of_example(example)
        self.groups: ChannelGroups = channel_groups(graph)
        self.group = RehearsalGroup(0, 2)
        self.group.slowdown.factor = slowdown
        self.samples: list[_Sample] = []
        self.rests: list[float] = []
        self.handlings: list[float] = []
        self.window = PERIODS * quota_period()
        self.memory = memory
        self.workspace: list[Workspace] = []
        self.seconds: dict[float, float] = {}
        self.needs: dict[float, float] = {}
        self.most = math.inf
        self.again: Callable[[], object] = lambda: None

    def run(self, budget: Budget) -> None:
        """Measure as many shares as *budget* allows."""
        ends = time.monotonic() + budget.seconds
        self.most = budget.seconds / 8
        for share in FIRST:
            if len(self.seconds) < LEAST or self._fits(share, ends):
                self.measure(share)
        if self._fits(1 / 2, ends):
            # One more than a multiple of the grid, to see how high the steps of a staircase are.
            self._point(self._plan(1 / 2, "filters", 1), 1 / 2, "filters")
        for scheme in budget.schemes:
            can_follow = _can_follow(self.graph, scheme)
            for number, share in enumerate(MORE[scheme] if can_follow else ()):
                # A plan may share the images only where all ranks know what some of them take.
                if (scheme == "batch" and number == 0 and self._holds_all()) or self._fits(
                    share, ends
                ):
                    self._point(self._plan(share, scheme), share, scheme)
        intervals = _neighbours(sorted(self.seconds))
        while intervals:
            low, high = intervals.pop(0)
            middle = (low + high) / 2
            if high - low < 1 / 16 or not self._fits(middle, ends):
                continue
            line = (self.seconds[low] + self.seconds[high]) / 2
            self.measure(middle)
            if abs(self.seconds[middle] - line) > MISS * self.seconds[middle]:
                intervals += [(low, middle), (middle, high)]

    def measure(self, share: float) -> None:
        """Measure a step with *share*, from 0 to 1, of every channel group."""
        seconds, need = self._point(self._plan(share, "filters"), share, "filters")
        self.seconds[share], self.needs[share] = seconds, need

    def _fits(self, share: float, ends: float) -> bool:
        """Return whether time and memory suffice for a share, judged by those already measured."""
        known = sorted(self.seconds)
        nearest = min(known, key=lambda other: abs(other - share))
        slope = self.seconds[known[-1]] / max(known[-1], 1 / 16)
        step = self.seconds[nearest] + max(0.0, share - nearest) * slope
        if self.device.type == "cpu" and self.memory and self._bytes(share) > 0.8 * self.memory:
            return False
        return time.monotonic() + step * (2 + REPEATS[0]) < ends

    def _holds_all(self) -> bool:
        """Return whether a rank has room for all parameters, with gradients and momentum."""
        size = sum(p.numel() * p.element_size() for p in self.graph.skeleton.parameters())
        return not self.memory or 3 * size < 0.8 * self.memory

    def _bytes(self, share: float) -> float:
        """Estimate the bytes of a step with a share, on the line through the last two measured."""
        (low, some), (high, more) = sorted(self.needs.items())[-2:] if len(self.needs) > 1 else (
            (0.0, 0.0), *self.needs.items()
        )  # fmt: skip
        return more + (share - high) * (more - some) / max(high - low, 1e-9)

    def _plan(self, share: float, scheme: SchemeName, more: int = 0) -> Plan:
        """Make a plan in which this rank has a share of every group, and *more* channels."""
        shares = {}
        for group in self.groups.groups:
            count = min(group.units, on_grid(share, group.units) + more)
            shares[group.number] = Partition((count, group.units - count))
        schemes = _can_follow(self.graph, scheme)
        return plan_from_shares(
            self.graph, self.groups, shares, (max(share, 1e-9), max(1 - share, 1e-9)), schemes
        )

    def _point(self, plan: Plan, share: float, scheme: SchemeName) -> tuple[float, float]:
        """Measure a plan, this rank's *share* by *scheme*; return (seconds, bytes) of a step."""
        model = rehearsal_model(self.graph, plan, self.group, self.device, self.tuning)
        watch = model.hetmp.watch = Stopwatch(self.device, self.group.slowdown)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        with watch.memory(model):
            self._step(model, optimizer, watch)
        runs: list[dict[str, StepTimes]] = []
        optimizer.zero_grad()
        memory = PeakMeter(self.device)
        memory.begin()
        began = time.monotonic()
        while not _enough(runs, time.monotonic() - began, self.window, self.most):
            runs.append(self._step(model, optimizer, watch))
        self._keep_workspace(model, watch, share, scheme, memory.growth())
        self.again = lambda: self._step(model, optimizer, watch)
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        # A parameter, its gradient and its momentum.
        return self._keep(model.hetmp.schedule.training, runs, held), 3 * held + sum(
            watch.saved.values()
        )

    def _keep_workspace(
        self,
        model: SlicedModel,
        watch: Stopwatch,
        share: float,
        scheme: SchemeName,
        growth: int | None,
    ) -> None:
        """Keep what a step needed beyond what is counted, where its *growth* of memory is known."""
        if growth is None:
            return
        runtime, ranks = model.hetmp, self.group.size
        saved = {
            step.name: np.full(ranks, float(watch.saved.get(step.name, 0)))
            for step in runtime.schedule.training.steps
            if isinstance(step, CallStep)
        }
        program, table = runtime.schedule.training, runtime.table
        options = MemoryOptions(0.0, "nowhere")
        counted = step_memory(self.graph, program, table, saved, self.images, options)
        counted -= held_bytes(table, ranks)
        beyond = max(0.0, growth - float(counted[0]))
        self.workspace.append(Workspace(scheme=scheme, share=share, bytes=beyond))

    def _step(
        self, model: SlicedModel, optimizer: torch.optim.Optimizer, watch: Stopwatch
    ) -> dict[str, StepTimes]:
        watch.reset()
        watch.phase("")
        optimizer.zero_grad()
        _loss(model(*self.args, **self.kwargs)).backward()
        watch.phase(OPTIMIZER)
        optimizer.step()
        watch.phase("")
        return watch.times()

    def _keep(self, program: Program, runs: list[dict[str, StepTimes]], held: int) -> float:
        factor = self.group.slowdown.factor
        steps = [step for step in program.steps if isinstance(step, CallStep)]
        exchanges = [step for step in program.steps if isinstance(step, ExchangeStep)]
        stretch = _stretch(runs, {step.name for step in steps})

        def seconds(name: str, part: str) -> float:
            measured = [getattr(run[name], part) for run in runs if name in run]
            if not measured:
                return 0.0
            if self.device.type == "cuda":
                return statistics.median(wall for wall, _ in measured)
            return statistics.median(cpu for _, cpu in measured) * (stretch + factor - 1)

        total = 0.0
        for step in steps:
            work, kind, state = step_work(step, self.images)
            times = seconds(step.name, "forward"), seconds(step.name, "backward"), seconds(
                step.name, "parameters"
            )  # fmt: skip
            saved = runs[-1].get(step.name, StepTimes()).saved
            count = None if state is None else state.layout.counts[0]
            length = None if state is None else state.layout.total
            self.samples.append(_Sample(work, kind, count, length, times, saved))
            total += sum(times)
        whole = sum(p.numel() * p.element_size() for p in self.graph.skeleton.parameters())
        update = seconds(OPTIMIZER, "forward")
        part = round(THOUSANDTHS * min(1.0, held / max(1, whole)))
        self.samples.append(
            _Sample(OPTIMIZER, "channelwise", part, THOUSANDTHS, (update, 0.0, 0.0), 0)
        )
        rest = seconds("", "forward") + seconds("", "backward")
        self.rests.append(rest)
        handling = sum(
            seconds(step.name, part) for step in exchanges for part in ("forward", "backward")
        )
        self.handlings.append(handling / max(1, len(exchanges)))
        return total + update + rest + handling

    def works(self) -> tuple[WorkTimes, ...]:
        """Return the measured times, by work."""
        by_work: dict[tuple[str, Kind], list[_Sample]] = {}
        for sample in self.samples:
            by_work.setdefault((sample.work, sample.kind), []).append(sample)
        return tuple(_times(*key, samples) for key, samples in by_work.items())

    @property
    def rest(self) -> float:
        """Return the seconds of a step outside all operations."""
        return statistics.median(self.rests)

    @property
    def handling(self) -> float:
        """Return the seconds around an exchange, forward and backward."""
        return statistics.median(self.handlings)


def on_grid(share: float, units: int) -> int:
    """Return a share of *units* channels as a count, rounded to the grid if there are enough."""
    count = share * units
    for grid in (GRID, 8, 4):
        if count >= 1.5 * grid and units >= 4 * grid:
            return min(units, round(count / grid) * grid)
    return max(1, round(count)) if count > 0 else 0


def _neighbours(points: list[float]) -> list[tuple[float, float]]:
    """Return the intervals above 0, the widest first."""
    above = [point for point in points if point > 0]
    return sorted(itertools.pairwise(above), key=lambda pair: pair[0] - pair[1])


def _can_follow(graph: ModelGraph, scheme: SchemeName) -> Mapping[str, SchemeName]:
    """Return the layers that can follow a scheme, where it is not ``filters``."""
    if scheme == "filters":
        return {}
    if scheme == "batch":
        return batch_everywhere(graph)
    return {
        node.path: scheme
        for node in graph.mixing()
        if isinstance(node.rule, Mixing)
        and not graph.is_tied(node)
        and scheme in node.rule.schemes(node.call.whole_layer)
        and node.rule.input_channels(node.call.whole_layer) is not None
    }


def _enough(runs: list[Any], spent: float, window: float, most: float) -> bool:
    fewest, enough = REPEATS
    if len(runs) < fewest or (spent < window and spent < most):
        return False
    if (len(runs) >= enough and spent >= window) or spent >= most:
        return True
    totals = [sum(t.forward[1] + t.backward[1] + t.parameters[1] for t in r.values()) for r in runs]
    mean = statistics.mean(totals)
    error = statistics.stdev(totals) / math.sqrt(len(totals))
    return bool(stdtrit(len(totals) - 1, 0.975) * error <= INTERVAL * mean)


def _stretch(runs: list[dict[str, StepTimes]], names: set[str]) -> float:
    """Return the ratio of wall-clock to CPU time of the work: above 1 on a shared or limited CPU.

    Short operations are stretched by luck; all of them together are not.
    """
    parts = [
        part
        for run in runs
        for name, times in run.items()
        if name in names
        for part in (times.forward, times.backward, times.parameters)
    ]
    cpu = sum(part[1] for part in parts)
    return max(1.0, sum(part[0] for part in parts) / cpu) if cpu > 0 else 1.0


def _times(work: str, kind: Any, samples: list[_Sample]) -> WorkTimes:
    total = next((sample.total for sample in samples if sample.total is not None), 1)
    by_count: dict[int, list[_Sample]] = {}
    for sample in samples:
        by_count.setdefault(total if sample.count is None else sample.count, []).append(sample)
    counts = sorted(by_count)

    def column(figure: Callable[[_Sample], float]) -> tuple[float, ...]:
        return tuple(statistics.median(map(figure, by_count[count])) for count in counts)

    return WorkTimes(
        work=work,
        kind=kind,
        total=total,
        counts=tuple(counts),
        forward=column(lambda sample: sample.times[0]),
        backward=column(lambda sample: sample.times[1]),
        parameters=column(lambda sample: sample.times[2]),
        saved=column(lambda sample: sample.saved),
    )


def batch_of_example(example: Any) -> tuple[int, torch.dtype]:
    """Return (number of images, dtype) of an example's batch.

    Raises:
        HetmpError: it has no batch.
    """
    items = example.values() if isinstance(example, Mapping) else example
    for item in [example] if isinstance(example, Tensor) else items:
        if isinstance(item, Tensor) and item.is_floating_point() and item.dim():
            return int(item.shape[0]), item.dtype
    raise HetmpError(
        "the example input needs a floating-point tensor whose first axis is the batch"
    )


def _arguments(example: Any, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make up arguments of the example's shapes and dtypes."""

    def made_up(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        if item.is_floating_point():
            return torch.randn(item.shape, dtype=item.dtype, device=device)
        return torch.zeros(item.shape, dtype=item.dtype, device=device)

    if isinstance(example, Mapping):
        return (), {name: made_up(item) for name, item in example.items()}
    items = example if isinstance(example, tuple) else (example,)
    return tuple(made_up(item) for item in items), {}


def _loss(output: Any) -> Tensor:
    """Return a scalar that depends on every floating-point output."""
    if isinstance(output, Tensor):
        return output.square().mean() if output.is_floating_point() else output.new_zeros(())
    items = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | tuple | list):
        raise HetmpError(f"the model returns a {type(output).__name__}: profile cannot measure it")
    return sum((_loss(item) for item in items), start=torch.zeros(()))
