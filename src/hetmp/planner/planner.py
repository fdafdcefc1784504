"""``make_plan``: profile and graph -> the plan with the least predicted time of a step."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from hetmp.core.errors import HetmpError
from hetmp.core.text import bytes_text
from hetmp.planner.link_model import LinkModel
from hetmp.planner.predict import Prediction, parameter_bytes, predict
from hetmp.planner.profiling import Profile
from hetmp.planner.refine import refine
from hetmp.planner.save_memory import save_memory
from hetmp.planner.splits import WORTH, SharedModel, Split, Splitter
from hetmp.planner.switches import Switches
from hetmp.planner.tables import Tables
from hetmp.slicing import make_table
from hetmp.slicing.graph import ModelGraph, fingerprint
from hetmp.slicing.plan import Plan, PredictedLayer
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.step_memory import MemoryOptions

TRIES = 12
"""Most attempts to reduce shares until they fit in memory."""

FASTEST_ALONE = "the fastest rank alone"

FILTERS_EVERYWHERE = "filters everywhere"

BATCH_EVERYWHERE = "batch everywhere, weighted data parallelism"

EVERY = 16
"""Up to this many ranks, every number of ranks is tried when slow ones are left out."""


@dataclass(frozen=True)
class PlanOptions:
    """Constraints and objective of a plan.

    Attributes:
        memory_limit: most bytes of any rank; the free memory of each if None.
        objective: ``time`` for the least time, ``memory`` to share by the ranks' memory.
        schemes: whether layers may follow other schemes than ``filters``.
        leave_out: whether ranks may be left out.
        optimizer_states: numbers that the optimizer keeps for each parameter: 1 for SGD with
            momentum, 2 for AdamW.
    """

    memory_limit: int | None = None
    objective: Literal["time", "memory"] = "time"
    schemes: bool = True
    leave_out: bool = True
    optimizer_states: float = 1.0


@dataclass(frozen=True)
class Planned:
    """A plan with its prediction.

    Attributes:
        plan: the plan for all ranks.
        prediction: for the ranks that take part, in their order.
        alternatives: seconds of a step by other ways to use the ranks.
        left_out: the reason for each rank that takes no part.
        limits: bytes that each rank may use, 0 if unknown.
        switches: predicts steps with other schemes; None where no other was asked for.
        too_large: the alternatives for which there is not enough memory.
    """

    plan: Plan
    prediction: Prediction
    alternatives: Mapping[str, float]
    left_out: Mapping[int, str]
    limits: tuple[int, ...]
    switches: Callable[[], Switches] | None = None
    too_large: frozenset[str] = frozenset()


def make_plan(graph: ModelGraph, profile: Profile, options: PlanOptions | None = None) -> Planned:
    """Make the plan with the least predicted time of a training step for the ranks of *profile*.

    Args:
        graph: the model, the one that was profiled.
        profile: measured times of the ranks and of the links between them.
        options: objective and constraints; the defaults if None.

    Raises:
        HetmpError: the profile is of another model, or the model does not fit in memory.
    """
    return _Planner(graph, profile, options or PlanOptions()).plan()


@dataclass
class _Candidate:
    """A split for some of the ranks."""

    members: tuple[int, ...]
    plan: Plan
    prediction: Prediction
    by_filters: float
    """Seconds of a step in which every layer follows ``filters``."""


@dataclass
class _Planner:
    graph: ModelGraph
    profile: Profile
    options: PlanOptions
    tables: Tables = field(init=False)
    links: LinkModel = field(init=False)

    def __post_init__(self) -> None:
        self.tables, self.links = Tables(self.profile.devices), LinkModel(self.profile)
        self.model = SharedModel(self.graph, self.profile.batch_size, self.tables)
        limit = self.options.memory_limit
        self.limits = tuple(
            device.memory if limit is None else limit for device in self.profile.devices
        )
        whole = Split.by_weights(self.model, [1.0]).plan(self.model)
        schedule = schedule_model(self.graph, whole)
        table = make_table(self.graph, schedule)
        self.alone = np.array(
            [
                predict(
                    self.graph, schedule, table, self.tables.of([rank]), self.links.between([rank]),
                    self.profile.batch_size,
                ).seconds
                for rank in self._representatives()
            ]
        )[self._which()]  # fmt: skip
        self.parameters = parameter_bytes(table)

    def plan(self) -> Planned:
        """Return the best candidate, spread over all ranks."""
        order = [int(rank) for rank in np.argsort(self.alone, kind="stable")]
        chooses = self.options.leave_out and self.options.objective == "time"
        chooses_schemes = self.options.schemes and self.options.objective == "time"
        members = self._least(order) if chooses else order
        best = self._candidate(sorted(members), thorough=True)
        ranks, (alternatives, too_large) = self.tables.ranks, self._alternatives(best)
        plan = best.plan.spread(best.members, ranks).model_copy(
            update={
                "fingerprint": fingerprint(self.graph),
                "devices": tuple(device.title for device in self.profile.devices),
                "predicted_seconds": best.prediction.seconds,
                "predicted": _predicted(best.prediction),
                "predicted_alternatives": alternatives,
            }
        )
        return Planned(
            plan,
            best.prediction,
            alternatives,
            self._reasons(best, order),
            self.limits,
            partial(self._switches, best) if chooses_schemes else None,
            too_large,
        )

    def _switches(self, best: _Candidate) -> Switches:
        """Return what steps of the ranks of *best* would take with other schemes."""
        splitter, caps = self._splitter(best.members), [1.0] * len(best.members)
        by_filters = splitter.by_filters(caps, thorough=False)
        everywhere = splitter.by_batch(caps, by_filters)
        return Switches(
            self.graph, self.model.groups, splitter.tables, best.plan,
            by_filters.plan(self.model), everywhere.plan(self.model) if everywhere else None,
            splitter.predict_plan,
        )  # fmt: skip

    def _least(self, order: Sequence[int]) -> Sequence[int]:
        """Return the best of the fastest one, two, ... ranks, of all or of the fastest hosts."""
        tried: dict[tuple[int, ...], _Candidate | HetmpError] = {}

        def candidate(members: Sequence[int]) -> _Candidate | HetmpError:
            key = tuple(sorted(members))
            if key not in tried:
                try:
                    tried[key] = self._candidate(key)
                except HetmpError as error:
                    tried[key] = error
            return tried[key]

        for ranks in dict.fromkeys((tuple(order), self._host_by_host(order))):

            def seconds(count: int, ranks: tuple[int, ...] = ranks) -> float:
                made = candidate(ranks[:count])
                return made.prediction.seconds if isinstance(made, _Candidate) else np.inf

            counts = range(1, len(ranks) + 1) if len(ranks) <= EVERY else _bracket(
                seconds, len(ranks)
            )  # fmt: skip
            for count in counts:
                candidate(ranks[:count])
        fits = [made for made in tried.values() if isinstance(made, _Candidate)]
        if not fits:
            raise tried[max(tried, key=len)]  # type: ignore[misc]
        # More ranks only where they promise something: those that are left out do no harm.
        fits.sort(key=lambda made: (len(made.members), made.prediction.seconds))
        best = fits[0]
        for made in fits:
            worth = 1 - WORTH if len(made.members) > len(best.members) else 1
            if made.prediction.seconds < worth * best.prediction.seconds:
                best = made
        return best.members

    def _host_by_host(self, order: Sequence[int]) -> tuple[int, ...]:
        """Return the ranks of the fastest host first, each host's in *order*."""
        hosts = self.links.hosts
        if not len(hosts):
            return tuple(order)
        speed = {int(host): float((1 / self.alone)[hosts == host].sum()) for host in set(hosts)}
        place = {rank: i for i, rank in enumerate(order)}
        return tuple(sorted(order, key=lambda r: (-speed[int(hosts[r])], hosts[r], place[r])))

    def _splitter(self, members: Sequence[int]) -> Splitter:
        """Return the search for the best split among *members*."""
        return Splitter(
            self.model,
            self.tables.of(members),
            self.links.between(members),
            [float(self.alone[rank]) for rank in members],
            [self.limits[rank] for rank in members],
            self._memory(members),
        )

    def _memory(self, members: Sequence[int]) -> MemoryOptions:
        """Return what decides how much memory a step on *members* takes."""
        packing: Literal["share", "own", "host"] = "own"
        if any(self.profile.devices[rank].on_gpu for rank in members):
            packing = "host"
        elif self.links.extent(members).hosts == 1:
            packing = "share"
        return MemoryOptions(self.options.optimizer_states, packing)

    def _candidate(self, members: Sequence[int], *, thorough: bool = False) -> _Candidate:
        """Return the best split in which all of *members* may have a part.

        Args:
            thorough: also try simpler splits, and mixtures of schemes.
        """
        splitter = self._splitter(members)
        caps = [1.0] * len(members)
        fitting: list[tuple[Split, Split]] = []
        for _ in range(TRIES):
            split, by_filters = self._split(splitter, caps, thorough)
            prediction = splitter.predict(split)
            if splitter.fits(prediction):
                fitting.append((split, by_filters))
                break
            saving = None if fitting else save_memory(splitter, split)
            if saving is not None:  # fewer channels on ranks that lack memory may be faster
                fitting.append((saving, by_filters))
            plan = split.plan(self.model)
            for i, limit in enumerate(splitter.limits):
                if limit and prediction.memory[i] > limit:
                    held = max(_share(plan, i), 1e-6)
                    caps[i] = 0.97 * min(caps[i], held) * limit / prediction.memory[i]
            if sum(caps) < 1:
                break
        if fitting:
            split, by_filters = min(fitting, key=lambda pair: splitter.predict(pair[0]).seconds)
            prediction, seconds = splitter.predict(split), splitter.predict(by_filters).seconds
            return _Candidate(tuple(members), split.plan(self.model), prediction, seconds)
        need, rank = max(
            (prediction.memory[i] - self.limits[rank], rank) for i, rank in enumerate(members)
        )
        raise HetmpError(
            f"the model does not fit: rank {rank} may use {bytes_text(self.limits[rank])} but "
            f"needs {bytes_text(self.limits[rank] + need)}. Use more ranks or memory, or a "
            "smaller batch"
        )

    def _split(
        self, splitter: Splitter, caps: Sequence[float], thorough: bool
    ) -> tuple[Split, Split]:
        """Return the best split, and the best by ``filters``, before their memory is looked at."""
        if self.options.objective == "memory":
            split = Split.by_weights(self.model, [limit or 1.0 for limit in splitter.limits])
            return split, split
        split = by_filters = splitter.by_filters(caps, thorough=thorough)
        if self.options.schemes:
            split = splitter.along_axes(caps, by_filters, thorough=thorough)
        return (refine(splitter, split, caps) if thorough else split), by_filters

    def _alternatives(self, best: _Candidate) -> tuple[dict[str, float], frozenset[str]]:
        """Predict the seconds of a step by other ways to use the ranks than *best*.

        Returns:
            The seconds by name, and the names of those for which there is not enough memory.
        """
        ranks, fastest = self.tables.ranks, int(self.alone.argmin())
        alone = self._splitter([fastest])
        whole = Split.by_weights(self.model, [1.0])
        predicted = {FASTEST_ALONE: (alone, alone.predict(whole))}
        seconds = {FASTEST_ALONE: float(self.alone[fastest])}
        if ranks > 1:
            splitter = self._splitter(range(ranks))
            equal = Split.by_weights(self.model, [1.0] * ranks)
            by_speed = Split.by_weights(self.model, (self.alone.min() / self.alone).tolist())
            everywhere = splitter.by_batch([1.0] * ranks, equal)
            splits = {"equal split": equal, "split in proportion to speed": by_speed}
            splits |= {BATCH_EVERYWHERE: everywhere} if everywhere is not None else {}
            predicted |= {name: (splitter, splitter.predict(x)) for name, x in splits.items()}
            seconds |= {name: made.seconds for name, (_, made) in predicted.items()}
            seconds[FILTERS_EVERYWHERE] = best.by_filters
            if everywhere is None:
                # Each rank computes the whole network for its images; gradients are summed.
                shared = splitter.links.seconds("Allreduce", self.parameters, 0.0)
                seconds["weighted data parallelism"] = float(1 / (1 / self.alone).sum()) + shared
        too_large = (name for name, (own, made) in predicted.items() if not own.fits(made))
        return seconds, frozenset(too_large)

    def _reasons(self, best: _Candidate, order: Sequence[int]) -> dict[int, str]:
        reasons = {}
        for rank in order:
            if rank not in best.members:
                reasons[rank] = (
                    f"no faster step is predicted with it; alone it would take "
                    f"{_seconds(self.alone[rank])}, the fastest rank {_seconds(self.alone.min())}"
                )
        return reasons

    def _representatives(self) -> list[int]:
        """Return one rank of every distinct device."""
        first: dict[int, int] = {}
        for rank, device in enumerate(self.profile.devices):
            first.setdefault(id(device), rank)
        return list(first.values())

    def _which(self) -> list[int]:
        """Return each rank's index among the representatives."""
        devices = self.profile.devices
        place = {id(devices[rank]): i for i, rank in enumerate(self._representatives())}
        return [place[id(device)] for device in devices]


def _predicted(prediction: Prediction) -> tuple[PredictedLayer, ...]:
    return tuple(
        PredictedLayer(
            name=layer.name,
            compute=layer.compute.tolist(),
            exchange=layer.exchange,
            idle=layer.idle.tolist(),
        )
        for layer in prediction.layers.values()
    )


def summary(planned: Planned) -> str:
    """Return the plan and its prediction as JSON."""
    plan, prediction = planned.plan, planned.prediction
    fields = {
        "plan": plan.model_dump(mode="json"),
        "predicted_seconds": prediction.seconds,
        "alternatives": dict(planned.alternatives),
        "left_out": {str(rank): why for rank, why in planned.left_out.items()},
        "bytes_received": prediction.received,
        "memory": dict(zip(map(str, plan.members), prediction.memory.tolist(), strict=True)),
    }
    return json.dumps(fields, indent=1)


def _bracket(seconds: Callable[[int], float], ranks: int) -> list[int]:
    """Return the numbers of ranks to try: powers of two, then halving around the best of them."""
    counts = sorted({min(ranks, 2**i) for i in range(ranks.bit_length() + 1)})
    best = min(counts, key=seconds)
    i = counts.index(best)
    low, high = counts[max(0, i - 1)], counts[min(len(counts) - 1, i + 1)]
    while high - low > max(1, ranks // 64):
        third = max(1, (high - low) // 3)
        left, right = low + third, high - third
        counts += [left, right]
        low, high = (low, right) if seconds(left) <= seconds(right) else (left, high)
    return sorted(set(counts))


def _share(plan: Plan, rank: int) -> float:
    """Return the largest share of a layer that a rank has."""
    return max(layer.counts[rank] / layer.channels for layer in plan.layers if layer.channels)


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
