"""The time of any exchange between any of a profile's ranks, from the exchanges that were measured.

Ranks of one host exchange through memory that they share, ranks of several through a network. So
a profile holds exchanges between several sets of its ranks, and those of a plan's ranks are taken
from the set that is most like them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from hetmp.core.errors import HetmpError
from hetmp.planner.profiling import TURN, LinkTimes, Profile
from hetmp.planner.tables import Array


@dataclass(frozen=True)
class Extent:
    """How many ranks exchange, on how many hosts; 0 hosts: it is not known."""

    ranks: int
    hosts: int = 0

    @property
    def crosses_network(self) -> bool:
        """Whether the ranks are on several hosts."""
        return self.hosts > 1

    @property
    def received(self) -> float:
        """The part of a value that a rank of equal share, or a host, receives from the others."""
        parties = self.hosts if self.crosses_network else self.ranks
        return (parties - 1) / parties

    def distance(self, other: "Extent") -> float:
        """Return how unlike two extents are; 0 if they are equal."""
        hosts = abs(math.log2(max(1, self.hosts)) - math.log2(max(1, other.hosts)))
        return hosts + abs(math.log2(self.ranks) - math.log2(other.ranks))


class Links:
    """Seconds of exchanges: a latency, and bytes of the whole value and of the largest share.

    A fit of what was measured, by least squares of relative errors with no term below 0. For
    another extent than was measured the latency follows the logarithm of the number of ranks, and
    the bytes (P - 1) / P of the ranks, or of the hosts where there are several, as in Thakur,
    Rabenseifner and Gropp (2005).

    Args:
        links: what was measured between one set of ranks.
        measured: the extent of that set, or its number of ranks.
        extent: the extent of the ranks that exchange, or their number.

    Attributes:
        ranks: how many exchange.
        hidden: the part of a sum of gradients that does not show beside work.
    """

    def __init__(
        self, links: Sequence[LinkTimes], measured: Extent | int, extent: Extent | int
    ) -> None:
        measured = Extent(measured) if isinstance(measured, int) else measured
        extent = Extent(extent) if isinstance(extent, int) else extent
        self._terms: dict[str, Array] = {}
        self.ranks = extent.ranks
        self.hidden = max((link.hidden for link in links), default=0.0)
        if self.ranks == 1:
            return
        if not links:
            raise HetmpError(
                "the profile has no times of exchanges: measure it with more than one rank, or "
                "give latency and bandwidth in the file of --ranks-from"
            )
        scale = np.ones(3)
        if measured != extent:
            part = extent.received / measured.received
            if extent.crosses_network != measured.crosses_network:  # all that is known of them
                part = (1 - 1 / extent.ranks) / (1 - 1 / measured.ranks)
            scale = np.array([math.log2(extent.ranks) / math.log2(measured.ranks), part, part])
        for link in links:
            size, largest = np.array(link.bytes, float), np.array(link.largest)
            seconds = np.maximum(np.array(link.seconds), 1e-9)
            terms = np.stack([np.ones_like(size), size, size * largest], axis=1)
            fit, _ = nnls(terms / seconds[:, None], np.ones_like(seconds))
            self._terms[link.collective] = fit * scale

    def seconds(self, collective: str, size: float, largest: float) -> float:
        """Return the seconds from the moment when all ranks are there; 0 where nothing moves.

        Args:
            collective: its name, ``Allgatherv`` say; ``-`` where nothing moves.
            size: bytes of the whole value.
            largest: the largest rank's share of it.
        """
        if self.ranks == 1 or collective == "-":
            return 0.0
        terms = self._terms.get(collective)
        if terms is None and collective == TURN:  # not measured by older profiles: at most this
            terms = self._terms.get("Alltoallv")
        if terms is None:
            raise HetmpError(f"the profile has no times of {collective}: measure it again")
        return float(terms @ (1.0, size, size * largest))

    def as_measured(self, sizes: Sequence[int]) -> tuple[LinkTimes, ...]:
        """Return the fit in the form of a measurement, for values of *sizes* bytes."""
        rows = [(size, largest) for size in sizes for largest in (1 / self.ranks, 1.0)]
        return tuple(
            LinkTimes(
                collective=name,
                bytes=tuple(size for size, _ in rows),
                largest=tuple(largest for _, largest in rows),
                seconds=tuple(self.seconds(name, size, largest) for size, largest in rows),
                hidden=self.hidden if name == "Allreduce" else 0.0,
            )
            for name in self._terms
        )


class LinkModel:
    """The links between any of a profile's ranks.

    Args:
        profile: whose exchanges were measured, and whose hosts are known or not.
    """

    def __init__(self, profile: Profile) -> None:
        self.hosts = np.array(profile.hosts, dtype=np.int64)
        everyone = tuple(range(len(profile.devices)))
        self._measured: dict[tuple[int, ...], list[LinkTimes]] = {}
        for link in profile.links:
            self._measured.setdefault(link.ranks or everyone, []).append(link)
        self._extents = {ranks: self.extent(ranks) for ranks in self._measured}
        self._links: dict[tuple[tuple[int, ...], Extent], Links] = {}

    def extent(self, ranks: Sequence[int]) -> Extent:
        """Return the extent of a set of ranks."""
        hosts = len(np.unique(self.hosts[np.asarray(ranks)])) if len(self.hosts) else 0
        return Extent(len(ranks), hosts)

    def between(self, ranks: Sequence[int]) -> Links:
        """Return the links between *ranks*, in ascending order.

        What was measured between exactly these is taken as it is. Else it is the measurement of
        the set that is most like them, through memory or through the network as theirs; of equally
        like ones the one with most of *ranks* in it.

        Raises:
            HetmpError: no exchange was measured.
        """
        extent, members = self.extent(ranks), frozenset(ranks)
        if len(ranks) == 1 or not self._measured:
            return Links((), extent, extent)

        def unlike(measured: tuple[int, ...]) -> tuple[bool, bool, float, int]:
            other = self._extents[measured]
            return (
                frozenset(measured) != members,
                other.crosses_network != extent.crosses_network,
                extent.distance(other),
                -len(members.intersection(measured)),
            )

        nearest = min(self._measured, key=unlike)
        key = nearest, extent
        if key not in self._links:
            self._links[key] = Links(self._measured[nearest], self._extents[nearest], extent)
        return self._links[key]
