"""``make_plan``: profile and graph -> the plan with the least predicted time of a step."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from hetmp.core.errors import HetmpError
from hetmp.core.partition import Partition, apportion
from hetmp.core.text import bytes_text
from hetmp.ops import SCHEMES, SchemeName
from hetmp.planner.balance import balanced, counts_on_grid
from hetmp.planner.choose_schemes import choose_schemes
from hetmp.planner.group_times import batch_times, batch_works, group_times, group_works
from hetmp.planner.predict import Prediction, parameter_bytes, predict
from hetmp.planner.profiling import GRID, Profile, batch_everywhere
from hetmp.planner.switches import Switches
from hetmp.planner.tables import Links, Tables
from hetmp.slicing import make_table
from hetmp.slicing.channel_groups import channel_groups, plan_from_shares
from hetmp.slicing.graph import ModelGraph, fingerprint
from hetmp.slicing.plan import LayerPlan, Plan, PredictedLayer
from hetmp.slicing.scheduler import schedule_model

WORTH = 0.02
"""Least share of the step's time that a scheme other than ``filters``, or one more rank, must
save: less is within the error of a prediction."""

ON_GRID = 0.03
"""Counts on the grid that is measured are preferred unless others promise this much: between its
points, times are interpolated and a staircase may be missed."""

TRIES = 12
"""Most attempts to reduce shares until they fit in memory."""

FASTEST_ALONE = "the fastest rank alone"

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
    """

    memory_limit: int | None = None
    objective: Literal["time", "memory"] = "time"
    schemes: bool = True
    leave_out: bool = True


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
    """

    plan: Plan
    prediction: Prediction
    alternatives: Mapping[str, float]
    left_out: Mapping[int, str]
    limits: tuple[int, ...]
    switches: Callable[[], Switches] | None = None


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
    """A plan for some of the ranks."""

    members: tuple[int, ...]
    plan: Plan
    prediction: Prediction


@dataclass
class _Planner:
    graph: ModelGraph
    profile: Profile
    options: PlanOptions
    tables: Tables = field(init=False)

    def __post_init__(self) -> None:
        self.tables = Tables(self.profile.devices)
        self.channel_groups = channel_groups(self.graph)
        limit = self.options.memory_limit
        self.limits = tuple(
            device.memory if limit is None else limit for device in self.profile.devices
        )
        schedule = schedule_model(self.graph, self._shared_by([1.0]))
        table = make_table(self.graph, schedule)
        self.alone = np.array(
            [
                predict(
                    self.graph, schedule, table, self.tables.of([rank]), self._links(1),
                    self.profile.batch_size,
                ).seconds
                for rank in self._representatives()
            ]
        )[self._which()]  # fmt: skip
        self.parameters = parameter_bytes(table)
        self.by_batch, self.works_by_batch = self._measured_by_batch()
        self.predicted: list[tuple[Plan, Prediction]] = []

    # --- the choice

    def plan(self) -> Planned:
        """Return the best candidate, spread over all ranks."""
        order = [int(rank) for rank in np.argsort(self.alone, kind="stable")]
        chooses = self.options.leave_out and self.options.objective == "time"
        chooses_schemes = self.options.schemes and self.options.objective == "time"
        members = self._least(order) if chooses else order
        best = self._candidate(sorted(members), thorough=True)
        ranks = self.tables.ranks
        alternatives = self._alternatives()
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
        )

    def _switches(self, best: _Candidate) -> Switches:
        """Return what steps of the ranks of *best* would take with other schemes."""
        tables, links = self.tables.of(best.members), self._links(len(best.members))
        caps = [1.0] * tables.ranks
        plain = self._cut(tables, caps, self._shared_by(caps), {})
        everywhere = self._everywhere(best.members, tables, caps, plain)
        return Switches(
            self.graph, self.channel_groups, tables, best.plan, plain, everywhere,
            lambda plan: self._predict(plan, tables, links),
        )  # fmt: skip

    def _least(self, order: Sequence[int]) -> Sequence[int]:
        """Return the best of the fastest one, two, ... ranks, with scheme ``filters`` alone."""
        ranks = len(order)
        tried: dict[int, _Candidate | HetmpError] = {}

        def seconds(count: int) -> float:
            if count not in tried:
                try:
                    tried[count] = self._candidate(sorted(order[:count]))
                except HetmpError as error:
                    tried[count] = error
            candidate = tried[count]
            return candidate.prediction.seconds if isinstance(candidate, _Candidate) else np.inf

        counts = list(range(1, ranks + 1)) if ranks <= EVERY else _bracket(seconds, ranks)
        for count in counts:
            seconds(count)
        fits = {n: c for n, c in tried.items() if isinstance(c, _Candidate)}
        if not fits:
            raise next(tried[n] for n in sorted(tried, reverse=True))  # type: ignore[misc]
        # More ranks only where they promise something: those that are left out do no harm.
        best = min(fits)
        for count in sorted(fits):
            if fits[count].prediction.seconds < (1 - WORTH) * fits[best].prediction.seconds:
                best = count
        return fits[best].members

    def _candidate(self, members: Sequence[int], *, thorough: bool = False) -> _Candidate:
        """Return the best plan in which all of *members* may have a part.

        Args:
            thorough: also try simpler splits and schemes other than ``filters``.
        """
        tables, links = self.tables.of(members), self._links(len(members))
        caps = [1.0] * len(members)
        for _ in range(TRIES):
            plan = self._planned(members, tables, links, caps, thorough)
            prediction = self._predict(plan, tables, links)
            over = [
                prediction.memory[i] / self.limits[rank]
                for i, rank in enumerate(members)
                if self.limits[rank]
            ]
            if not over or max(over) <= 1:
                return _Candidate(tuple(members), plan, prediction)
            for i, rank in enumerate(members):
                if self.limits[rank] and prediction.memory[i] > self.limits[rank]:
                    held = max(_share(plan, i), 1e-6)
                    caps[i] = 0.97 * min(caps[i], held) * self.limits[rank] / prediction.memory[i]
            if sum(caps) < 1:
                break
        need, rank = max(
            (prediction.memory[i] - self.limits[rank], rank) for i, rank in enumerate(members)
        )
        raise HetmpError(
            f"the model does not fit: rank {rank} may use {bytes_text(self.limits[rank])} but "
            f"needs {bytes_text(self.limits[rank] + need)}. Use more ranks or memory, or a "
            "smaller batch"
        )

    def _planned(
        self,
        members: Sequence[int],
        tables: Tables,
        links: Links,
        caps: Sequence[float],
        thorough: bool,
    ) -> Plan:
        if self.options.objective == "memory":
            room = [self.limits[rank] or 1 for rank in members]
            return self._shared_by(room)
        plain = self._cut(tables, caps, self._shared_by([1.0] * tables.ranks), {})
        if tables.ranks == 1:
            return plain
        if thorough and min(caps) >= 1:
            # Every group is balanced for itself; over all of them a plainer split may be as good.
            speeds = [1 / self.alone[rank] for rank in members]
            splits = [plain, self._shared_by([1.0] * tables.ranks), self._shared_by(speeds)]
            plain = min(splits, key=lambda plan: self._predict(plan, tables, links).seconds)
            plain = self._better_on_grid(tables, links, caps, plain, {})
        if not self.options.schemes:
            return plain
        best, least = plain, (1 - WORTH) * self._predict(plain, tables, links).seconds
        everywhere = self._everywhere(members, tables, caps, plain)
        others: Iterable[Plan] = () if everywhere is None else (everywhere,)
        if thorough:
            others = self._mixtures(tables, links, caps, plain, everywhere)
        for mixed in others:
            prediction = self._predict(mixed, tables, links)
            if prediction.seconds < least and self._fits(members, prediction):
                best, least = mixed, prediction.seconds
        return best

    def _mixtures(
        self,
        tables: Tables,
        links: Links,
        caps: Sequence[float],
        plain: Plan,
        everywhere: Plan | None,
    ) -> Iterator[Plan]:
        """Yield plans in which layers follow several schemes, *everywhere* among them if any."""
        images = self.profile.batch_size
        along_channels = choose_schemes(self.graph, plain, tables, links, images)
        if any(scheme != "filters" for scheme in along_channels.values()):
            mixed = self._cut(tables, caps, with_schemes(plain, along_channels, ()), along_channels)
            if min(caps) >= 1:
                mixed = self._better_on_grid(tables, links, caps, mixed, along_channels)
            yield mixed
        if everywhere is None:
            return
        yield everywhere
        weights: Sequence[float] = next(
            layer.weights for layer in everywhere.layers if layer.cuts_batch
        )
        for _ in range(2):
            chosen = choose_schemes(
                self.graph, plain, tables, links, images, self.by_batch, weights
            )
            weights = self._batch_weights(tables, caps, plain, chosen, weights)
            like = with_schemes(plain, chosen, weights)
            yield self._cut(tables, caps, like, chosen, weights=weights)

    def _everywhere(
        self, members: Sequence[int], tables: Tables, caps: Sequence[float], plain: Plan
    ) -> Plan | None:
        """Return the plan in which every layer follows ``batch``; None if that was not measured."""
        if not self.by_batch:
            return None
        speeds = [float(1 / self.alone[rank]) for rank in members]
        weights = self._batch_weights(tables, caps, plain, self.by_batch, speeds)
        return with_schemes(plain, self.by_batch, weights)

    def _batch_weights(
        self,
        tables: Tables,
        caps: Sequence[float],
        plan: Plan,
        schemes: Mapping[str, SchemeName],
        weights: Sequence[float],
    ) -> Sequence[float]:
        """Return shares of a batch by which all ranks take as long for all that shares the images.

        *weights* are those to begin with.
        """
        images, works = self.profile.batch_size, self.works_by_batch
        if schemes is not self.by_batch:
            schedule = schedule_model(self.graph, with_schemes(plan, schemes, weights))
            works = batch_works(schedule, images)
        if not works:
            return weights
        most = [max(0, int(np.ceil(cap * images))) for cap in caps]
        return [float(n) for n in balanced(batch_times(tables, works, images), most)]

    def _measured_by_batch(self) -> tuple[Mapping[str, SchemeName], Mapping[str, int]]:
        """Return ``batch`` for all layers that can follow it, and the work that they then do.

        Nothing of both if the profile has no times of that.
        """
        everywhere = batch_everywhere(self.graph)
        plan = with_schemes(self._shared_by([1.0]), everywhere, [1.0])
        works = batch_works(schedule_model(self.graph, plan), self.profile.batch_size)
        known = all(self.tables.has(work, "batch") for work in works)
        return (everywhere, works) if known else ({}, {})

    def _fits(self, members: Sequence[int], prediction: Prediction) -> bool:
        return all(
            not self.limits[rank] or prediction.memory[i] <= self.limits[rank]
            for i, rank in enumerate(members)
        )

    def _better_on_grid(
        self,
        tables: Tables,
        links: Links,
        caps: Sequence[float],
        plan: Plan,
        schemes: Mapping[str, SchemeName],
    ) -> Plan:
        """Return balanced counts on the measured grid, or *plan* if it is predicted faster."""
        snapped = self._cut(tables, caps, plan, schemes, grid=GRID)
        before = self._predict(plan, tables, links).seconds
        after = self._predict(snapped, tables, links).seconds
        return snapped if after <= (1 + ON_GRID) * before else plan

    def _cut(
        self,
        tables: Tables,
        caps: Sequence[float],
        like: Plan,
        schemes: Mapping[str, SchemeName],
        grid: int = 1,
        weights: Sequence[float] = (),
    ) -> Plan:
        """Make a plan with balanced counts for every channel group, and *schemes* for the layers.

        Args:
            grid: counts that are large enough are multiples of this.
            weights: the ranks' shares of a batch, where layers follow ``batch``.
        """
        schedule = schedule_model(self.graph, like)
        works = group_works(self.channel_groups, schedule, self.profile.batch_size)
        shares = {}
        partitions: dict[tuple[object, ...], Partition] = {}
        for group in self.channel_groups.groups:
            key = (group.units, *sorted(works[group.number].items(), key=str))
            if key not in partitions:
                times = group_times(tables, works[group.number], group.units)
                most = [max(0, int(np.ceil(cap * group.units))) for cap in caps]
                partitions[key] = Partition(counts_on_grid(balanced(times, most), grid))
            shares[group.number] = partitions[key]
        speeds = [sum(share.counts[rank] for share in shares.values()) for rank in range(len(caps))]
        return plan_from_shares(self.graph, self.channel_groups, shares, weights or speeds, schemes)

    # --- predictions

    def _predict(self, plan: Plan, tables: Tables, links: Links) -> Prediction:
        """Predict a step; the last few plans, on the ranks that they are for, are known already."""
        for known, prediction in self.predicted:
            if known is plan:
                return prediction
        schedule = schedule_model(self.graph, plan)
        table = make_table(self.graph, schedule)
        made = predict(self.graph, schedule, table, tables, links, self.profile.batch_size)
        self.predicted = [(plan, made), *self.predicted[:3]]
        return made

    def _links(self, ranks: int) -> Links:
        return Links(self.profile.links, self.tables.ranks, ranks)

    def _shared_by(self, weights: Sequence[float]) -> Plan:
        lengths = {group.units for group in self.channel_groups.groups}
        by_units = {units: apportion(units, weights) for units in lengths}
        shares = {g.number: by_units[g.units] for g in self.channel_groups.groups}
        return plan_from_shares(self.graph, self.channel_groups, shares, weights)

    def _alternatives(self) -> dict[str, float]:
        """Predict the seconds of a step by other ways to use all the ranks."""
        seconds = {FASTEST_ALONE: float(self.alone.min())}
        ranks = self.tables.ranks
        if ranks == 1:
            return seconds
        links = self._links(ranks)
        for name, weights in (
            ("equal split", np.ones(ranks)),
            ("split in proportion to speed", self.alone.min() / self.alone),
        ):
            plan = self._shared_by(weights.tolist())
            seconds[name] = self._predict(plan, self.tables, links).seconds
        like, caps = self._shared_by([1.0] * ranks), [1.0] * ranks
        plain = self._cut(self.tables, caps, like, {})
        seconds["filters everywhere"] = self._predict(plain, self.tables, links).seconds
        everywhere = self._everywhere(range(ranks), self.tables, caps, like)
        if everywhere is not None:
            seconds[BATCH_EVERYWHERE] = self._predict(everywhere, self.tables, links).seconds
        else:
            # Each rank computes the whole network for its images; gradients are summed.
            shared = links.seconds("Allreduce", self.parameters, 0.0)
            seconds["weighted data parallelism"] = float(1 / (1 / self.alone).sum()) + shared
        return seconds

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


def with_schemes(plan: Plan, schemes: Mapping[str, SchemeName], weights: Sequence[float]) -> Plan:
    """Return *plan* with the *schemes* of some layers, and with *weights* where it is ``batch``."""

    def changed(layer: LayerPlan) -> LayerPlan:
        scheme = schemes.get(layer.name, layer.scheme)
        own = tuple(map(float, weights)) if SCHEMES[scheme].cuts_batch else ()
        return layer.model_copy(update={"scheme": scheme, "weights": own})

    return plan.model_copy(update={"layers": tuple(map(changed, plan.layers))})


def _share(plan: Plan, rank: int) -> float:
    """Return the largest share of a layer that a rank has."""
    return max(layer.counts[rank] / layer.channels for layer in plan.layers if layer.channels)


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
