"""The figures of a run that the diagnosis needs, and their origin in the records."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from hetmp.tools.report.measures import mean_message, plan_of, shared, shares, step_times
from hetmp.tools.report.reading import RunPart
from hetmp.tools.report.records import PlaceRecord, WatchedLayer


@dataclass(frozen=True)
class Situation:
    """Figures of a run's speed. Seconds are of one step; tuples have a number per member.

    Attributes:
        ranks: the ranks that take part, as the job numbers them.
        step: seconds of a whole step, reading included.
        shares: shares of what the ranks share, 0 to 1; empty if not known.
        shared: what that is: channels, images or both.
        counted: number of steps in the medians.
        planned: whether the shares come from measured times.
        batch_size: images of a step; 0 if not known.
        readers: threads of each rank that read ahead.
        rounded: whether bfloat16 is sent; None if it cannot be, or is not known.
        shared_memory: whether ranks of a host may exchange through shared memory.
        message: mean bytes of an exchange, all ranks together; NaN if not known.
        costliest: the layer whose exchanges cost most, and their seconds.
        awaited: the layer at which ranks wait most, and the mean seconds.
        slowdown: factors by which ranks were slowed on purpose; empty if no member was.
        left_out: ranks of the job that take no part.
        crowded: (host, ranks, cores) if ranks may have to share a host's cores.
    """

    ranks: tuple[int, ...]
    step: float
    compute: tuple[float, ...]
    exchange: float
    waiting: tuple[float, ...]
    reading: tuple[float, ...]
    counted: int
    shares: tuple[float, ...] = ()
    shared: str = "channels"
    planned: bool = False
    batch_size: int = 0
    readers: int = 1
    rounded: bool | None = None
    shared_memory: bool = True
    message: float = float("nan")
    costliest: tuple[str, float] | None = None
    awaited: tuple[str, float] | None = None
    slowdown: tuple[float, ...] = ()
    left_out: tuple[int, ...] = ()
    crowded: tuple[tuple[str, int, int], ...] = ()

    @property
    def read(self) -> float:
        """Return the seconds by which reading delays a step: those of the slowest reader."""
        return max(self.reading)

    @property
    def waited(self) -> float:
        """Return the mean seconds that ranks wait for each other's computing."""
        return max(0.0, mean(self.waiting) - (self.read - mean(self.reading)))


def situation(part: RunPart) -> Situation | None:
    """Collect the figures of a part of a run; None if no step of it has times."""
    times = step_times(part)
    if times is None:
        return None
    record, plan = part.record, plan_of(part)
    config: dict[str, Any] = record.config if record else {}
    slowdown = config.get("slowdown") or ()
    places = record.placement if record else ()
    if max(times.ranks) < len(places):
        places = tuple(places[rank] for rank in times.ranks)
    slowed = [factor != 1 for rank, factor in enumerate(slowdown) if rank in times.ranks]
    rounded = None
    if config.get("dtype") == "float32":
        rounded = bool(config.get("rounded"))
    return Situation(
        ranks=times.ranks,
        step=times.step,
        compute=tuple(times.median["compute"].tolist()),
        exchange=float(times.median["exchange"].mean()),
        waiting=tuple(times.median["waiting"].tolist()),
        reading=tuple(times.median["reading"].tolist()),
        counted=times.counted,
        shares=shares(part),
        shared=shared(part),
        planned=bool(plan and (plan.predicted_seconds or plan.devices))
        or config.get("weights") == "auto",
        batch_size=int(config.get("batch_size") or 0),
        readers=int(config.get("readers") or 1),
        rounded=rounded,
        shared_memory=not config.get("no_shared_memory"),
        message=mean_message(part.layers.exchanges) if part.layers else float("nan"),
        left_out=plan.left_out if plan else (),
        costliest=_largest(part, lambda layer: layer.exchange),
        awaited=_largest(part, lambda layer: float(np.mean(layer.waiting))),
        slowdown=tuple(slowdown) if any(slowed) else (),
        crowded=crowded_hosts(places),
    )


def _largest(part: RunPart, of: Callable[[WatchedLayer], float]) -> tuple[str, float] | None:
    """Return the layer with the largest figure, and the figure; None if there is none."""
    layers = part.layers.layers if part.layers else ()
    known = [(layer.name, of(layer)) for layer in layers if layer.name and layer.waiting]
    name, most = max(known, key=lambda pair: pair[1], default=("", 0.0))
    return (name, most) if most > 0 else None


def crowded_hosts(places: Sequence[PlaceRecord]) -> tuple[tuple[str, int, int], ...]:
    """Return (host, ranks, cores) of hosts with more ranks than cores that each may use.

    A rank with as many threads as cores is taken to have its cores to itself.

    >>> crowded_hosts([PlaceRecord(host="a", cores=2, threads=1)] * 3)
    (('a', 3, 2),)
    >>> crowded_hosts([PlaceRecord(host="a", cores=2, threads=2)] * 3)
    ()
    """
    ranks = Counter(place.host for place in places)
    crowded = {}
    for place in places:
        if ranks[place.host] > place.cores > place.threads:
            crowded[place.host] = (place.host, ranks[place.host], place.cores)
    return tuple(crowded.values())
