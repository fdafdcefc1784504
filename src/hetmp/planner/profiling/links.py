"""Measure exchanges between the ranks, for several sizes and degrees of unevenness."""

import json
import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from hetmp.cluster import Group
from hetmp.core.partition import Layout, apportion
from hetmp.core.state import FULL, PARTIAL, Sliced, State
from hetmp.exchange import Carriage, Exchange, collective, share_shape, tidy
from hetmp.ops.layers.convolution import has_many_pixels
from hetmp.planner.profiling.profile import LinkTimes
from hetmp.slicing import Tuning
from hetmp.slicing.orders import BUNDLE
from hetmp.slicing.schedule import ExchangeStep, Program

REPEATS = 5
CACHE = 1 << 24
"""Numbers to touch between exchanges, more than caches hold."""

SIZES = 5
"""Number of a model's exchanges to measure, from the smallest to the largest."""

SKEWS = (0.0, 0.7)
"""How much more than its equal share one rank has: 0 nothing, 1 everything."""

TURN = "Alltoallv, two axes"
"""The exchange that turns slices of the batch into slices of the channels, or back."""


def link_name(source: State, target: State) -> str:
    """Return the name by which a profile has the times of an exchange; ``-``: nothing moves."""
    if isinstance(source, Sliced) and isinstance(target, Sliced) and source.axis != target.axis:
        return TURN
    return collective(source, target)


def exchanged_shapes(program: Program, batch_size: int) -> list[tuple[int, ...]]:
    """Choose up to *SIZES* shapes of a program's exchanges, over their range of sizes."""
    shapes = {
        (batch_size, *step.value.sizes[0][1:])
        for step in program.steps
        if isinstance(step, ExchangeStep) and step.value.is_tensor and step.value.dims > 1
    }
    ordered = sorted(shapes, key=lambda shape: (int(np.prod(shape)), shape))
    picks = np.linspace(0, len(ordered) - 1, min(SIZES, len(ordered)))
    return [ordered[round(pick)] for pick in picks]


def sets_to_measure(hosts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Choose the sets of ranks between which exchanges are measured, all ranks first.

    A plan may leave ranks out, and what remains may share one host's memory or lie on a few hosts:
    so the host with most ranks is measured alone, two of its ranks, one rank of every host, and one
    of each of two hosts.

    Args:
        hosts: for each rank, a number that those of its host share.

    >>> sets_to_measure((0, 0, 2, 2))
    ((0, 1, 2, 3), (0, 1), (0, 2))
    >>> sets_to_measure((0, 1, 2)), sets_to_measure((0, 0, 0)), sets_to_measure((0,))
    (((0, 1, 2), (0, 1)), ((0, 1, 2), (0, 1)), ())
    """
    of_host: dict[int, list[int]] = {}
    for rank, host in enumerate(hosts):
        of_host.setdefault(host, []).append(rank)
    widest = max(of_host.values(), key=len)
    leaders = [ranks[0] for ranks in of_host.values()]
    sets = (range(len(hosts)), widest, widest[:2], leaders, leaders[:2])
    return tuple(dict.fromkeys(tuple(ranks) for ranks in sets if len(ranks) > 1))


def measure_links(
    group: Group,
    hosts: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    tuning: Tuning,
) -> tuple[LinkTimes, ...]:
    """Measure every kind of exchange between the ranks of *group*, and some of them. Collective.

    Args:
        group: the ranks.
        hosts: for each rank, a number that those of its host share.
        shapes: of the whole values, (n, c, *spatial). With fewer channels than ranks, some ranks
            have none.
        dtype, device: of the values; *device* is this rank's.
        tuning: with which the model will run.

    Returns:
        The same on every rank; empty for one rank.
    """
    links: list[LinkTimes] = []
    for ranks in sets_to_measure(hosts):
        if len(ranks) == group.size:
            links += _between(group, shapes, dtype, device, tuning)
            continue
        comm = group.part(ranks)
        measured: tuple[LinkTimes, ...] = ()
        if comm is not None:
            few = shapes[:: max(1, (len(shapes) - 1) // 2)]  # the ends and the middle
            measured = _between(Group(comm), few, dtype, device, tuning)
        group.meet()
        own = json.dumps([link.model_dump() for link in measured])
        for fields in json.loads(group.broadcast_text(own, root=ranks[0])):
            links.append(LinkTimes.model_validate(fields | {"ranks": ranks}))
    return tuple(links)


def _between(
    group: Group,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    tuning: Tuning,
) -> tuple[LinkTimes, ...]:
    """Measure every kind of exchange between the ranks of *group*. Collective."""
    measured: dict[str, list[tuple[int, float, float]]] = {}
    others = torch.empty(CACHE, device=device)  # once: its pages take longer than the exchanges
    for shape in shapes:
        size = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
        for skew in SKEWS:
            layout = _layout(shape[1], group.size, skew)
            largest = max(layout.counts) / layout.total
            other = _layout(shape[1], group.size, skew, last=True)
            images = _layout(shape[0], group.size, skew)
            for source, target in (
                (Sliced(layout, 1), FULL),
                (PARTIAL, Sliced(layout, 1)),
                (PARTIAL, FULL),
                (Sliced(layout, 1), Sliced(other, 1)),
                (Sliced(images, 0), Sliced(layout, 1)),
            ):
                if source == target:
                    continue
                exchange = Exchange(group, source, target, tuning.wire)
                seconds = _time(exchange, shape, dtype, others, tuning)
                name = link_name(source, target)
                measured.setdefault(name, []).append((size, largest, seconds))
    summing = link_name(PARTIAL, FULL)
    hidden = {summing: _hidden(Exchange(group, PARTIAL, FULL, tuning.wire), dtype, others)}
    return tuple(
        LinkTimes(
            collective=name,
            bytes=tuple(size for size, _, _ in rows),
            largest=tuple(largest for _, largest, _ in rows),
            seconds=tuple(seconds for _, _, seconds in rows),
            hidden=hidden.get(name, 0.0),
        )
        for name, rows in measured.items()
    )


def _hidden(exchange: Exchange, dtype: torch.dtype, others: torch.Tensor) -> float:
    """Return the part of a sum of gradients that does not show beside work, 0 to 1. Collective.

    A bundle of gradients is summed, work of twice that time is done, and both at once. An MPI that
    makes progress only when it is called hides little.
    """
    group = exchange.group
    x = torch.randn(BUNDLE // dtype.itemsize, dtype=dtype, device=others.device)
    part = others[: x.numel()]

    def seconds(summed: bool, works: int) -> float:
        tidy(group)
        group.control.Barrier()
        began = time.perf_counter()
        move = exchange.move(x, Carriage(), blocking=False) if summed else None
        for _ in range(works):
            part.add_(1)
        if others.is_cuda:
            torch.cuda.synchronize(others.device)
        if move is not None:
            move.wait()
        return float(group.allgather(np.array([time.perf_counter() - began])).max())

    seconds(True, 1)
    alone = statistics.median(seconds(True, 0) for _ in range(REPEATS))
    parts = max(1, math.ceil(2 * alone / seconds(False, 1)))
    shown = [seconds(True, parts) - seconds(False, parts) for _ in range(REPEATS)]
    return min(1.0, max(0.0, 1 - statistics.median(shown) / alone))


def _layout(channels: int, ranks: int, skew: float, *, last: bool = False) -> Layout:
    weights = [(1 - skew) / ranks] * ranks
    weights[-1 if last else 0] += skew
    return Layout.of(apportion(channels, weights))


def _time(
    exchange: Exchange,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    others: torch.Tensor,
    tuning: Tuning,
) -> float:
    """Return the median over repeats of the slowest rank's seconds. Collective.

    *others*, more than caches hold, is on the device whose values are exchanged.
    """
    group = exchange.group
    share = share_shape(torch.Size(shape), exchange.source, group.rank)
    x = torch.randn(share, dtype=dtype, device=others.device)
    last = tuning.channels_last and len(shape) == 4 and has_many_pixels(shape)
    order = (0, 2, 3, 1) if last else None
    gathers = exchange.target == FULL and exchange.source != PARTIAL
    how = Carriage(tuning.shared_memory, gathers, order, tuning.rounded)
    if order is not None and exchange.source == PARTIAL:
        x = x.contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(1 + REPEATS):
        tidy(group)
        # In a step, much was computed since the memory of an exchange was last used.
        others.add_(1)
        x.mul_(1)
        group.control.Barrier()
        began = time.perf_counter()
        exchange.move(x, how, blocking=True).wait()
        took = time.perf_counter() - began
        seconds.append(float(group.allgather(np.array([took])).max()))
    return statistics.median(seconds[1:])
