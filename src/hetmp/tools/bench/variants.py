"""The variants of a training step: each is a function that takes one step."""

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.cluster.slowdown import Slowdown
from hetmp.core.partition import apportion
from hetmp.slicing import SlicedModel, Tuning
from hetmp.tools.bench.config import DATA_PARALLEL, ONE_PROCESS, TUNINGS, BenchConfig
from hetmp.tools.bench.cuts import Cut
from hetmp.tools.bench.data_parallel import data_parallel

Step = Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """A way to compute a training step.

    Attributes:
        step: takes this rank's part of a step.
        cut: whose exchanges it takes part in; None for none.
    """

    step: Step
    cut: Cut | None = None


def left_out(config: BenchConfig, ranks: int) -> dict[str, str]:
    """Return the requested variants that cannot run, with the reason."""
    reasons = {}
    if len(config.input_shape) != 3:
        reasons["one process, channels_last"] = "images have no rows and columns"
    for name in DATA_PARALLEL:
        counts = batches(name, config, ranks)
        if 0 in counts:
            reasons[name] = f"rank {counts.index(0)} gets none of the {config.batch_size} images"
    return {name: why for name, why in reasons.items() if name in config.variants()}


def batches(name: str, config: BenchConfig, ranks: int) -> tuple[int, ...]:
    """Return the number of images of each rank in a data parallel variant.

    *name* is that of the variant, *config* the bench's, over *ranks* ranks.
    """
    weights = config.weights if name == "data parallel, weighted" else (1.0,) * ranks
    return apportion(config.batch_size, weights).counts


def one_process_threads(group: Group, threads: int) -> int:
    """Return the threads of one process: *threads* per rank, at most the cores it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(threads * group.size, cores or 1)


def make_variants(
    names: list[str],
    config: BenchConfig,
    group: Group,
    module: nn.Module,
    cuts: Mapping[str, Cut],
    batch: tuple[Tensor, Tensor],
    slowdown: Slowdown,
    prepare: Callable[[str], None],
) -> dict[str, Variant]:
    """Make this rank's step of each of *names*. Collective.

    Args:
        names: of the variants.
        config: of the bench.
        group: all ranks.
        module: the whole network, with values on rank 0 at least.
        cuts: the sliced networks: ``sliced``, and those of the variants that are cuts.
        batch: (images, labels) of the whole batch.
        slowdown: of this rank.
        prepare: called with the name of each one that takes time to prepare.
    """
    threads = torch.get_num_threads()
    steps = {name: _step(cut.model, *batch) for name, cut in cuts.items()}
    images = batch[0].to(memory_format=torch.channels_last) if batch[0].dim() == 4 else batch[0]
    variants: dict[str, Variant] = {}
    for name in names:
        if name in TUNINGS:
            cut, rehearsing = cuts["sliced"], name == "floor"
            assert cut.model is not None  # by weights, nobody is left out
            step = _tuned(cut.model, TUNINGS[name], rehearsing, steps["sliced"])
            variants[name] = Variant(step, cut)
        elif name in DATA_PARALLEL:
            prepare(name)
            counts = batches(name, config, group.size)
            paced = slowdown if config.slowdown is not None else None
            replica, part, scale = data_parallel(group, module, counts, paced)
            variants[name] = Variant(_step(replica, images[part], batch[1][part], scale))
        elif name in ONE_PROCESS:
            prepare(name)
            last = name.endswith("channels_last")
            layout = torch.channels_last if last else torch.contiguous_format
            variants[name] = Variant(_alone(group, module, batch, layout, threads))
        else:
            variants[name] = Variant(steps[name], cuts[name])
    return variants


def _step(model: nn.Module | None, x: Tensor, labels: Tensor, scale: float = 1.0) -> Step:
    """Return a step of *model*; None: this rank takes no part."""
    if model is None:
        return lambda: None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        (scale * nn.functional.cross_entropy(model(x), labels)).backward()
        optimizer.step()

    return step


def _tuned(model: SlicedModel, tuning: Tuning, rehearsing: bool, step: Step) -> Step:
    runtime = model.hetmp

    def tuned() -> None:
        usual, runtime.tuning = runtime.tuning, tuning
        try:
            with runtime.group.rehearsed() if rehearsing else nullcontext():
                step()
        finally:
            runtime.tuning = usual

    return tuned


def _alone(
    group: Group,
    module: nn.Module,
    batch: tuple[Tensor, Tensor],
    layout: torch.memory_format,
    threads: int,
) -> Step:
    if not group.is_root:
        return lambda: None
    whole: Any = copy.deepcopy(module)
    step = _step(whole.to(memory_format=layout), batch[0].to(memory_format=layout), batch[1])
    cores = one_process_threads(group, threads)

    def alone() -> None:
        torch.set_num_threads(cores)
        try:
            step()
        finally:
            torch.set_num_threads(threads)

    return alone
