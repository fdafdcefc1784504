"""``bench``: build the variants, let them take turns, measure their times."""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp import models
from hetmp.cluster import Group
from hetmp.cluster.slowdown import Slowdown
from hetmp.core.errors import HetmpError
from hetmp.run.progress.view import Silent, View
from hetmp.run.rank_setup import RankOrder, order_ranks, set_up_rank
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.plan import Plan
from hetmp.tools.bench.config import DATA_PARALLEL, TUNINGS, BenchConfig
from hetmp.tools.bench.cuts import Cut, Schemes, make_cut, read_cut
from hetmp.tools.bench.data_parallel import process_group
from hetmp.tools.bench.progress import WARM_UP, Timetable, TurnProgress
from hetmp.tools.bench.result import BenchResult
from hetmp.tools.bench.variants import Variant, left_out, make_variants, one_process_threads

if TYPE_CHECKING:
    from mpi4py import MPI


def bench(
    config: BenchConfig,
    comm: "MPI.Intracomm | None" = None,
    view: View[Timetable] | None = None,
) -> BenchResult:
    """Measure a training step (forward, backward, SGD) in every variant. Collective.

    Args:
        config: what to measure.
        comm: the ranks; ``MPI.COMM_WORLD`` if None.
        view: shows rank 0's user how far it is; None for nothing.

    Returns:
        The same on every rank.

    Raises:
        HetmpError: on every rank, for settings that cannot be measured, and where ``seconds``
            are over before each variant was timed once.
    """
    timetable = Timetable(config.repeats, config.seconds)
    ranks = order_ranks(comm, config.slowdown)
    shown = view if view is not None and ranks.group.is_root else Silent()
    with TurnProgress(timetable, shown) as progress:
        return _bench(config, ranks, progress)


def _bench(config: BenchConfig, ranks: RankOrder, progress: TurnProgress) -> BenchResult:
    config = dataclasses.replace(
        config,
        weights=ranks.arrange(config.weights) or config.weights,
        slowdown=ranks.arrange(config.slowdown),
    )
    group = ranks.group
    progress.prepare("the network")
    with group.together():
        config.check(group.size)
        missing = left_out(config, group.size)
        names = [name for name in config.variants() if name not in missing]
        if not names:
            raise HetmpError(
                "nothing is left to measure: "
                + "; ".join(f"{name}: {why}" for name, why in missing.items())
            )
        schemes: dict[str, Schemes] = {name: read_cut(name) for name in config.cuts()}
        if set(names) & set(TUNINGS):
            schemes = {"sliced": config.schemes, **schemes}
        module = _build(config, group, schemes.values())
        random = torch.Generator().manual_seed(0)  # a batch must be the same on every rank
        x = torch.randn(config.batch_size, *config.input_shape, generator=random)
        batch = x, _labels(config, read_graph(module, x), random)
    setup = set_up_rank(ranks, "cpu", slowdown=config.slowdown)
    slowdown = Slowdown()
    cuts: dict[str, Cut] = {}
    for name, how in schemes.items():
        progress.prepare(name)
        # Reading is the same for all cuts: it is verified once.
        cuts[name] = make_cut(how, (module, x), config, setup, slowdown, verify=not cuts)
    torches = process_group(group) if set(names) & set(DATA_PARALLEL) else nullcontext()
    with torches:
        variants = make_variants(
            names, config, group, module, cuts, batch, slowdown, progress.prepare
        )
        slowdown.factor = setup.slowdown
        seconds, exchange = _take_turns(group, variants, slowdown, progress)
    threads = (setup.threads, one_process_threads(group, setup.threads))
    received = {name: cut.received for name, cut in cuts.items()}
    return BenchResult(config, seconds, exchange, threads, missing, received)


def _build(config: BenchConfig, group: Group, schemes: Iterable[Schemes]) -> nn.Module:
    """Build the whole network, on the meta device if this rank needs no values."""
    torch.manual_seed(0)
    shipped = config.model in models.names()
    parallel = set(config.variants()) & set(DATA_PARALLEL)
    giving = {0} | {plan.members[0] for plan in schemes if isinstance(plan, Plan)}
    needed = group.rank in giving or parallel or not shipped
    with nullcontext() if needed else torch.device("meta"):
        return models.build(config.model, config.input_shape, config.classes)


def _labels(config: BenchConfig, graph: ModelGraph, random: torch.Generator) -> Tensor:
    """Make random labels: (n,), or (n, *spatial) if the network scores every place."""
    trace = graph.training
    scores = trace.values[getattr(trace.result, "name", "")].shape
    places = [size for size in scores[2:] if size is not None]
    return torch.randint(config.classes, (config.batch_size, *places), generator=random)


def _take_turns(
    group: Group, variants: Mapping[str, Variant], slowdown: Slowdown, progress: TurnProgress
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time the variants in turns, until there were enough or the time is over. Collective."""
    timetable = progress.timetable
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    exchange: dict[str, list[np.ndarray[Any, Any]]] = {
        name: [] for name, variant in variants.items() if variant.cut is not None
    }
    timetable.start(list(variants))
    for turn in range(WARM_UP + timetable.repeats):
        over = False
        for name in np.random.default_rng(turn).permutation(list(variants)):
            progress.begin(turn, name)
            step, cut = variants[name].step, variants[name].cut
            step()  # what the variant before left in caches and in malloc goes with it
            before = cut.exchange_seconds() if cut else 0.0
            _meet(group)
            slowdown.resume()
            began = time.perf_counter()
            step()
            slowdown.worked()
            elapsed = time.perf_counter() - began
            _meet(group)
            spent = cut.exchange_seconds() - before if cut else 0.0
            by_rank = group.allgather(np.array([elapsed, spent, timetable.elapsed]))
            timetable.end(float(by_rank[:, 0].max()))
            # By rank 0's clock, so that all ranks stop after the same turn.
            over = timetable.limit is not None and by_rank[0, 2] >= timetable.limit
            if turn >= WARM_UP:
                seconds[name].append(float(by_rank[:, 0].max()))
                if name in exchange:
                    exchange[name].append(by_rank[:, 1])
            elif over:
                with group.together():
                    raise HetmpError(_too_short(timetable))
        if over:
            break
    medians = {name: np.median(np.stack(by_rank), axis=0) for name, by_rank in exchange.items()}
    return seconds, {name: values.tolist() for name, values in medians.items()}


def _too_short(timetable: Timetable) -> str:
    """Say that the time was over before each variant was timed once, and what would do."""
    missing = timetable.until(WARM_UP + 1)
    enough = "several times as much"
    if missing is not None:
        enough = f"{math.ceil(1.2 * (timetable.elapsed + missing))} seconds or more"
    return (
        f"the time, {timetable.limit:g} s, was over in warm-up turn {timetable.turn + 1} of "
        f"{WARM_UP}, before each variant was timed once: give {enough}, measure fewer variants, or "
        "take a smaller batch"
    )


def _meet(group: Group) -> None:
    """Wait for all ranks without keeping a core busy, then start together."""
    request = group.control.Ibarrier()
    while not request.Test():
        time.sleep(0.001)
    group.control.Barrier()
