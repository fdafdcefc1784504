"""``bench``: build the variants, let them take turns, measure their times."""

import dataclasses
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp import models
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.run.rank_setup import order_ranks, set_up_rank
from hetmp.slicing import SlicedModel, slice_model
from hetmp.slicing.step_bytes import step_bytes
from hetmp.tools.bench.config import DATA_PARALLEL, TUNINGS, BenchConfig
from hetmp.tools.bench.data_parallel import process_group
from hetmp.tools.bench.result import BenchResult
from hetmp.tools.bench.variants import Step, left_out, make_variants, one_process_threads

if TYPE_CHECKING:
    from mpi4py import MPI

WARM_UP = 3
"""Turns that do not count."""


def bench(config: BenchConfig, comm: "MPI.Intracomm | None" = None) -> BenchResult:
    """Measure a training step (forward, backward, SGD) in every variant. Collective.

    Returns:
        The same on every rank.

    Raises:
        HetmpError: on every rank, for settings that cannot be measured.
    """
    ranks = order_ranks(comm, config.slowdown)
    config = dataclasses.replace(
        config,
        weights=ranks.arrange(config.weights) or config.weights,
        slowdown=ranks.arrange(config.slowdown),
    )
    group = ranks.group
    with group.together():
        config.check(group.size)
        module = _build(config, group)
        random = torch.Generator().manual_seed(0)  # a batch must be the same on every rank
        x = torch.randn(config.batch_size, *config.input_shape, generator=random)
    setup = set_up_rank(ranks, "cpu", slowdown=config.slowdown)
    model = slice_model(module, config.weights, ranks.comm, schemes=config.schemes, example_input=x)
    with group.together():
        missing = left_out(config, group.size)
        names = [name for name in config.variants() if name not in missing]
        if not names:
            raise HetmpError(
                "nothing is left to measure: "
                + "; ".join(f"{name}: {why}" for name, why in missing.items())
            )
    torches = process_group(group) if set(names) & set(DATA_PARALLEL) else nullcontext()
    with torches:
        variants = make_variants(names, config, module, model, (x, _labels(config, model, random)))
        model.hetmp.group.slowdown.factor = setup.slowdown
        try:
            seconds, exchange = _take_turns(config, model, variants)
        finally:
            model.hetmp.group.slowdown.factor = 1.0
    cores = one_process_threads(group, setup.threads)
    runtime = model.hetmp
    moved = step_bytes(runtime.graph, runtime.schedule, runtime.table, config.batch_size)
    threads = (setup.threads, cores)
    return BenchResult(config, seconds, exchange, threads, missing, moved.received)


def _build(config: BenchConfig, group: Group) -> nn.Module:
    """Build the whole network, on the meta device if this rank needs no values."""
    torch.manual_seed(0)
    shipped = config.model in models.names()
    parallel = set(config.variants()) & set(DATA_PARALLEL)
    with nullcontext() if group.is_root or parallel or not shipped else torch.device("meta"):
        return models.build(config.model, config.input_shape, config.classes)


def _labels(config: BenchConfig, model: SlicedModel, random: torch.Generator) -> Tensor:
    """Make random labels: (n,), or (n, *spatial) if the network scores every place."""
    trace = model.hetmp.graph.training
    scores = trace.values[getattr(trace.result, "name", "")].shape
    places = [size for size in scores[2:] if size is not None]
    return torch.randint(config.classes, (config.batch_size, *places), generator=random)


def _take_turns(
    config: BenchConfig, model: SlicedModel, variants: Mapping[str, Step]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    group, runtime = model.hetmp.group, model.hetmp
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    exchange: dict[str, list[np.ndarray[Any, Any]]] = {
        name: [] for name in variants if name in TUNINGS
    }
    for turn in range(WARM_UP + config.repeats):
        for name in np.random.default_rng(turn).permutation(list(variants)):
            variants[name]()  # what the variant before left in caches and in malloc goes with it
            before = sum(runtime.exchange_seconds(model).values())
            _meet(group)
            group.slowdown.resume()
            began = time.perf_counter()
            variants[name]()
            group.slowdown.worked()
            elapsed = time.perf_counter() - began
            _meet(group)
            spent = sum(runtime.exchange_seconds(model).values()) - before
            by_rank = group.allgather(np.array([elapsed, spent]))
            if turn >= WARM_UP:
                seconds[name].append(float(by_rank[:, 0].max()))
                if name in exchange:
                    exchange[name].append(by_rank[:, 1])
    medians = {name: np.median(np.stack(by_rank), axis=0) for name, by_rank in exchange.items()}
    return seconds, {name: values.tolist() for name, values in medians.items()}


def _meet(group: Group) -> None:
    """Wait for all ranks without keeping a core busy, then start together."""
    request = group.control.Ibarrier()
    while not request.Test():
        time.sleep(0.001)
    group.control.Barrier()
