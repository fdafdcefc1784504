"""How long a training step takes, beside what it could take at best: ``hetmp bench``.

Variants take turns, so that a noisy machine is noisy for all of them, and medians are compared.

| variant | what runs |
| --- | --- |
| sliced | the sliced model, as `hetmp train` runs it |
| sliced again | the same once more: how far apart two equal things come out here |
| floor | the same slices, with barriers in the place of exchanges |
| one process | the whole network on rank 0, with the cores of all ranks of its host |
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp import models
from hetmp.comm import Group
from hetmp.device import share_cores
from hetmp.errors import HetmpError
from hetmp.pace import check_slowdown
from hetmp.slicing import SlicedModel, slice_model

if TYPE_CHECKING:
    from mpi4py import MPI

WARM_UP = 3
"""Turns that are not counted."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Attributes:
        model, input_shape, classes: the network, and the images that it is built for.
        weights: the ranks' relative speeds.
        batch_size: images per step.
        repeats: turns of every variant that count.
        channels_last: whether activations and weights lie channel by channel.
        slowdown: how many times slower each rank behaves than it is, a test aid.
    """

    model: str
    input_shape: tuple[int, ...]
    classes: int
    weights: tuple[float, ...]
    batch_size: int
    repeats: int
    channels_last: bool = False
    slowdown: tuple[float, ...] | None = None


@dataclass(frozen=True)
class BenchResult:
    """What was measured, the same on every rank.

    Attributes:
        seconds: of every turn of every variant, by name: that of the slowest rank.
        exchange: of a sliced step, the median seconds of exchange and packing, by rank; waiting
            for slower ranks is part of it.
        threads: of one rank, and of the one process.
    """

    config: BenchConfig
    seconds: dict[str, list[float]]
    exchange: list[float]
    threads: tuple[int, int]

    def median(self, variant: str) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds[variant])

    def ratio(self, variant: str) -> float:
        """What a sliced step takes, as a multiple of *variant*."""
        return self.median("sliced") / self.median(variant)


def bench(config: BenchConfig, comm: "MPI.Intracomm | None" = None) -> BenchResult:
    """Measure a training step (forward, backward, SGD). Collective.

    Raises:
        HetmpError: on every rank, for a configuration that cannot be measured.
    """
    group = Group(comm)
    with group.together():
        _check(config, group)
        torch.manual_seed(0)
        module: Any = models.build(config.model, config.input_shape, config.classes)
    threads = share_cores(group)
    if config.channels_last:
        module = module.to(memory_format=torch.channels_last)
    x, labels = _batch(config)
    model = slice_model(module, config.weights, comm, example_input=x)
    model.hetmp.group.pace.factor = (config.slowdown or (1.0,) * group.size)[group.rank]
    sliced = _step(model, x, labels)
    variants: dict[str, Callable[[], None]] = {
        "sliced": sliced,
        "sliced again": sliced,
        "floor": _rehearsed(model, sliced),
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    one_process = min(threads * group.size, cores or 1)
    if config.slowdown is None:
        variants["one process"] = _alone(group, _step(module, x, labels), one_process, threads)
    try:
        seconds, exchange = _take_turns(config, model, variants)
    finally:
        model.hetmp.group.pace.factor = 1.0
    return BenchResult(config, seconds, exchange, (threads, one_process))


def _check(config: BenchConfig, group: Group) -> None:
    for name in ("batch_size", "repeats"):
        if getattr(config, name) < 1:
            raise HetmpError(f"{name} is 1 or more, got {getattr(config, name)}")
    if config.slowdown is not None:
        check_slowdown(config.slowdown, group.size)


def _batch(config: BenchConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(config.batch_size, *config.input_shape, generator=generator)
    if config.channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randint(config.classes, (config.batch_size,), generator=generator)


def _step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def _rehearsed(model: SlicedModel, step: Callable[[], None]) -> Callable[[], None]:
    def rehearsed() -> None:
        model.hetmp.group.rehearsing = True
        try:
            step()
        finally:
            model.hetmp.group.rehearsing = False

    return rehearsed


def _alone(group: Group, step: Callable[[], None], cores: int, threads: int) -> Callable[[], None]:
    def alone() -> None:
        if group.is_root:
            torch.set_num_threads(cores)
            step()
            torch.set_num_threads(threads)

    return alone


def _take_turns(
    config: BenchConfig, model: SlicedModel, variants: dict[str, Callable[[], None]]
) -> tuple[dict[str, list[float]], list[float]]:
    group, runtime = model.hetmp.group, model.hetmp
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    exchange: list[np.ndarray[Any, Any]] = []
    for turn in range(WARM_UP + config.repeats):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            before = sum(runtime.exchange_seconds(model))
            _meet(group)
            began = time.perf_counter()
            variants[name]()
            elapsed = time.perf_counter() - began
            _meet(group)
            spent = sum(runtime.exchange_seconds(model)) - before
            told = group.allgather(np.array([elapsed, spent]))
            if turn >= WARM_UP:
                seconds[name].append(float(told[:, 0].max()))
                if name == "sliced":
                    exchange.append(told[:, 1])
    return seconds, np.median(np.stack(exchange), axis=0).tolist()


def _meet(group: Group) -> None:
    """Wait for all ranks without keeping a core busy, then start together."""
    request = group.control.Ibarrier()
    while not request.Test():
        time.sleep(0.001)
    group.control.Barrier()


def rows(result: BenchResult) -> Sequence[tuple[str, str, str, str]]:
    """(variant, milliseconds of a step, quartiles, sliced as a multiple of it) of each variant."""
    told = []
    for name, seconds in result.seconds.items():
        milliseconds = 1000 * np.array(seconds)
        low, high = np.percentile(milliseconds, [25, 75])
        ratio = "" if name == "sliced" else f"{result.ratio(name):.3f}"
        told.append((name, f"{np.median(milliseconds):.1f}", f"{low:.1f} to {high:.1f}", ratio))
    return told
