"""The fastest way to share a model's work among some ranks: counts, images and schemes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hetmp.core.partition import Partition, apportion
from hetmp.ops import SCHEMES, SchemeName
from hetmp.planner.balance import balanced, counts_on_grid
from hetmp.planner.choose_schemes import choose_schemes
from hetmp.planner.group_times import batch_times, batch_works, group_times, group_works
from hetmp.planner.link_model import Links
from hetmp.planner.predict import Prediction, predict
from hetmp.planner.profiling import GRID, batch_everywhere
from hetmp.planner.tables import Tables
from hetmp.slicing import make_table
from hetmp.slicing.channel_groups import ChannelGroups, channel_groups, plan_from_shares
from hetmp.slicing.graph import ModelGraph
from hetmp.slicing.plan import Backward, Plan
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.step_memory import MemoryOptions

WORTH = 0.02
"""Least share of the step's time that a scheme other than ``filters``, or one more rank, must
save: less is within the error of a prediction."""

ON_GRID = 0.03
"""Counts on the grid that is measured are preferred unless others promise this much: between its
points, times are interpolated and a staircase may be missed."""


EFFORT = 30_000
"""Most operations of a model, times ranks, times predictions of a step: some seconds' work."""


class SharedModel:
    """A model whose work is shared, with what holds for any ranks.

    Args:
        graph: the model.
        batch_size: images of a step.
        tables: of the ranks that were measured.

    Attributes:
        groups: the model's channel groups.
        by_batch: scheme ``batch`` for all layers that can follow it; empty if a rank has no times
            of that.
        works_by_batch: the work that these then do, by signature.
    """

    def __init__(self, graph: ModelGraph, batch_size: int, tables: Tables) -> None:
        self.graph, self.batch_size = graph, batch_size
        self.groups: ChannelGroups = channel_groups(graph)
        everywhere = batch_everywhere(graph)
        plan = Split.by_weights(self, [1.0], everywhere).plan(self)
        works = batch_works(schedule_model(graph, plan), batch_size)
        known = all(tables.has(work, "batch") for work in works)
        self.by_batch: Mapping[str, SchemeName] = everywhere if known else {}
        self.works_by_batch: Mapping[str, int] = works if known else {}


@dataclass(frozen=True)
class Split:
    """How the work is shared among ranks.

    Attributes:
        shares: how the units of each channel group are cut, by its number.
        schemes: of the layers that do not follow ``filters``, by path.
        weights: the ranks' shares of a batch.
        backward: what the backward pass has of layers, by path; it keeps what it needs of others.
    """

    shares: Mapping[int, Partition]
    schemes: Mapping[str, SchemeName]
    weights: tuple[float, ...]
    backward: Mapping[str, Backward] = field(default_factory=dict)

    @classmethod
    def by_weights(
        cls,
        model: SharedModel,
        weights: Sequence[float],
        schemes: Mapping[str, SchemeName] | None = None,
    ) -> "Split":
        """Return the split in proportion to *weights*."""
        lengths = {group.units for group in model.groups.groups}
        by_units = {units: apportion(units, weights) for units in lengths}
        shares = {group.number: by_units[group.units] for group in model.groups.groups}
        return cls(shares, schemes or {}, tuple(map(float, weights)))

    def plan(self, model: SharedModel) -> Plan:
        """Return the split as a plan."""
        plan = plan_from_shares(model.graph, model.groups, self.shares, self.weights, self.schemes)
        layers = tuple(
            layer.model_copy(update={"backward": self.backward.get(layer.name)})
            for layer in plan.layers
        )
        return plan.model_copy(update={"layers": layers})


@dataclass
class Splitter:
    """The search for the best split among some ranks.

    Attributes:
        tables, links: measured times of these ranks and of the links between them.
        alone: seconds of a step that each would need for the whole network.
        limits: bytes that each may use, 0 if unknown.
        memory: what decides how much memory a step takes.
    """

    model: SharedModel
    tables: Tables
    links: Links
    alone: Sequence[float]
    limits: Sequence[int]
    memory: MemoryOptions
    _predicted: dict[int, tuple[Any, Prediction]] = field(default_factory=dict)

    @property
    def affordable(self) -> int:
        """How many steps may be predicted to better a split: none for a very large model or
        cluster."""
        return EFFORT // (len(self.model.graph.training.nodes) * self.tables.ranks)

    def predict(self, split: Split) -> Prediction:
        """Predict a step; the last few splits are known already."""
        known = self._predicted.get(id(split))
        if known is not None and known[0] is split:
            return known[1]
        made = self.predict_plan(split.plan(self.model))
        if len(self._predicted) > 3:
            del self._predicted[next(iter(self._predicted))]
        self._predicted[id(split)] = split, made
        return made

    def predict_plan(self, plan: Plan) -> Prediction:
        """Predict a step under a plan of these ranks."""
        graph, images = self.model.graph, self.model.batch_size
        schedule = schedule_model(graph, plan)
        table = make_table(graph, schedule)
        return predict(
            graph, schedule, table, self.tables, self.links, images, self.memory,
            plan.backward_by_layer(regather=False),
        )  # fmt: skip

    def by_filters(self, caps: Sequence[float], *, thorough: bool) -> Split:
        """Return the best split in which every layer follows ``filters``.

        Args:
            caps: the largest share of any channel group by rank.
            thorough: also try simpler splits.
        """
        equal = Split.by_weights(self.model, [1.0] * self.tables.ranks)
        split = self.balance(caps, equal)
        if self.tables.ranks == 1 or not thorough or min(caps) < 1:
            return split
        # Every group is balanced for itself; over all of them a plainer split may be as good.
        by_speed = Split.by_weights(self.model, [1 / seconds for seconds in self.alone])
        return self._better_on_grid(caps, min((split, equal, by_speed), key=self._seconds))

    def along_axes(self, caps: Sequence[float], by_filters: Split, *, thorough: bool) -> Split:
        """Return the best split in which layers may follow other schemes than ``filters``.

        Args:
            caps: the largest share of any channel group, and of the batch, by rank.
            by_filters: what is returned unless another is predicted to be faster by more than
                a prediction's error, and fits in memory.
            thorough: also try mixtures of schemes, and not only ``batch`` everywhere.
        """
        if self.tables.ranks == 1:
            return by_filters
        best, least = by_filters, (1 - WORTH) * self._seconds(by_filters)
        everywhere = self.by_batch(caps, by_filters)
        others: Iterable[Split] = () if everywhere is None else (everywhere,)
        if thorough:
            others = self._mixtures(caps, by_filters, everywhere)
        for mixed in others:
            prediction = self.predict(mixed)
            if prediction.seconds < least and self.fits(prediction):
                best, least = mixed, prediction.seconds
        return best

    def fits(self, prediction: Prediction) -> bool:
        """Return whether every rank has the memory that is predicted."""
        return not any(self.limits) or all(
            not limit or memory <= limit
            for limit, memory in zip(self.limits, prediction.memory, strict=True)
        )

    def by_batch(self, caps: Sequence[float], plain: Split) -> Split | None:
        """Return the split in which every layer follows ``batch``; None if it was not measured."""
        if not self.model.by_batch:
            return None
        speeds = [float(1 / seconds) for seconds in self.alone]
        everywhere = replace(plain, schemes=self.model.by_batch, weights=tuple(speeds))
        return self._balance_batch(caps, everywhere, self.model.works_by_batch)

    def balance(self, caps: Sequence[float], split: Split, grid: int = 1) -> Split:
        """Return *split* with balanced counts for every channel group.

        Args:
            caps: the largest share of a group, by rank.
            grid: counts that are large enough are multiples of this.
        """
        model = self.model
        schedule = schedule_model(model.graph, split.plan(model))
        works = group_works(model.groups, schedule, model.batch_size)
        shares = {}
        partitions: dict[tuple[object, ...], Partition] = {}
        for group in model.groups.groups:
            key = (group.units, *sorted(works[group.number].items(), key=str))
            if key not in partitions:
                times = group_times(self.tables, works[group.number], group.units)
                most = [max(0, int(np.ceil(cap * group.units))) for cap in caps]
                partitions[key] = Partition(counts_on_grid(balanced(times, most), grid))
            shares[group.number] = partitions[key]
        if any(SCHEMES[scheme].cuts_batch for scheme in split.schemes.values()):
            return replace(split, shares=shares)
        speeds = (sum(share.counts[rank] for share in shares.values()) for rank in range(len(caps)))
        return replace(split, shares=shares, weights=tuple(map(float, speeds)))

    def _mixtures(
        self, caps: Sequence[float], plain: Split, everywhere: Split | None
    ) -> Iterator[Split]:
        """Yield splits in which layers follow several schemes, *everywhere* among them if any."""
        model, plan = self.model, plain.plan(self.model)

        def chosen(*batch: Any) -> dict[str, SchemeName]:
            return choose_schemes(
                model.graph, plan, self.tables, self.links, model.batch_size, *batch
            )

        along_channels = chosen()
        if any(scheme != "filters" for scheme in along_channels.values()):
            mixed = self.balance(caps, replace(plain, schemes=along_channels))
            yield self._better_on_grid(caps, mixed) if min(caps) >= 1 else mixed
        if everywhere is None:
            return
        yield everywhere
        weights = everywhere.weights
        for _ in range(2):
            mixed = replace(plain, schemes=chosen(model.by_batch, weights), weights=weights)
            schedule = schedule_model(model.graph, mixed.plan(model))
            mixed = self._balance_batch(caps, mixed, batch_works(schedule, model.batch_size))
            weights = mixed.weights
            yield self.balance(caps, mixed)

    def _balance_batch(
        self, caps: Sequence[float], split: Split, works: Mapping[str, int]
    ) -> Split:
        """Return *split* with shares of a batch by which all ranks take as long for *works*."""
        images = self.model.batch_size
        if not works:
            return split
        most = [max(0, int(np.ceil(cap * images))) for cap in caps]
        counts = balanced(batch_times(self.tables, works, images), most)
        return replace(split, weights=tuple(map(float, counts)))

    def _better_on_grid(self, caps: Sequence[float], split: Split) -> Split:
        """Return balanced counts on the measured grid, or *split* if it is predicted faster."""
        snapped = self.balance(caps, split, grid=GRID)
        return snapped if self._seconds(snapped) <= (1 + ON_GRID) * self._seconds(split) else split

    def _seconds(self, split: Split) -> float:
        return self.predict(split).seconds
