"""Profiles from a description of a cluster, and speeds from a file of weights."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hetmp.core.documents import read, validated
from hetmp.core.errors import HetmpError
from hetmp.planner.link_model import Links
from hetmp.planner.profiling import TURN, LinkTimes, Profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

SIZES = (1 << 10, 1 << 20, 1 << 26)
"""Sizes in bytes at which times are computed from latency and bandwidth."""


class ClusterRanks(BaseModel):
    """Ranks of one kind."""

    model_config = _CONFIG

    profile: Path
    """A profile with a rank of this kind; the path is relative to the cluster file."""
    rank: int = Field(default=0, ge=0)
    """Which rank of that profile."""
    count: int = Field(default=1, ge=1)
    """Number of ranks of this kind."""
    per_host: int = Field(default=1, ge=1)
    """How many of them share a host."""
    nodes: str | None = None
    """Name of the hosts that they are on: ranks of the same name share the same hosts."""


class ClusterLink(BaseModel):
    """The links between the ranks: those of a profile, or latency and bandwidth."""

    model_config = _CONFIG

    profile: Path | None = None
    """A profile with these links."""
    latency: float | None = Field(default=None, gt=0)
    """Seconds of a message without content."""
    bandwidth: float | None = Field(default=None, gt=0)
    """Bytes a second."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "ClusterLink":
        figures = self.latency is not None and self.bandwidth is not None
        if figures == (self.profile is not None):
            raise ValueError("give either a profile, or latency and bandwidth")
        return self


class Cluster(BaseModel):
    """A cluster to plan for, described by profiles of its kinds of nodes."""

    model_config = _CONFIG

    ranks: tuple[ClusterRanks, ...] = Field(min_length=1)
    link: ClusterLink
    """Between all ranks; between hosts, if *link_within_host* is there."""
    link_within_host: ClusterLink | None = None
    """Between ranks of one host."""


def cluster_profile(path: str | Path) -> Profile:
    """Make the profile of the cluster that a TOML file describes: see ``docs/planning.md``.

    Raises:
        HetmpError: a file cannot be read, an entry is wrong, or the profiles differ in their work.
    """
    path = Path(path)
    try:
        fields = tomllib.loads(read(path, "cluster"))
    except tomllib.TOMLDecodeError as error:
        raise HetmpError(f"cluster {path} cannot be read: {error}") from error
    cluster = validated(Cluster, fields, f"cluster {path}")
    devices, sources = [], []
    for ranks in cluster.ranks:
        source = Profile.load(path.parent / ranks.profile)
        if ranks.rank >= len(source.devices):
            raise HetmpError(
                f"cluster {path}: {ranks.profile} has {len(source.devices)} ranks: there is no "
                f"rank {ranks.rank}"
            )
        devices += [source.devices[ranks.rank]] * ranks.count
        sources.append(source)
    links, hosts = _links(cluster.link, path, len(devices)), tuple[int, ...]()
    if cluster.link_within_host is not None:
        hosts = _hosts(cluster)
        widest = tuple(np.flatnonzero(np.array(hosts) == statistics.mode(hosts)).tolist())
        within = _links(cluster.link_within_host, path, len(widest))
        links += tuple(link.model_copy(update={"ranks": widest}) for link in within)
    return _like(sources).model_copy(
        update={"version": 2, "devices": tuple(devices), "hosts": hosts, "links": links}
    )


def _links(link: ClusterLink, path: Path, ranks: int) -> tuple[LinkTimes, ...]:
    """Return a link's times between so many ranks."""
    if link.profile is not None:
        return _for_ranks(Profile.load(path.parent / link.profile), ranks)
    assert link.latency is not None and link.bandwidth is not None
    return links_of(link.latency, link.bandwidth, ranks)


def _hosts(cluster: Cluster) -> tuple[int, ...]:
    """Return, for each rank of a cluster, the first rank on the same host."""
    first: dict[tuple[str | int, int], int] = {}
    hosts: list[int] = []
    for number, ranks in enumerate(cluster.ranks):
        nodes = number if ranks.nodes is None else ranks.nodes
        for i in range(ranks.count):
            hosts.append(first.setdefault((nodes, i // ranks.per_host), len(hosts)))
    return tuple(hosts)


def joined_profiles(profiles: Sequence[Profile]) -> Profile:
    """Join profiles into one with the ranks of all, and all their links.

    Where one of them does not know its hosts, the links are those of the one with most ranks.

    Raises:
        HetmpError: they differ in model, batch size or dtype, or they are of several hosts and no
            exchange between hosts was measured.
    """
    like = _like(profiles)
    if len(profiles) == 1:
        return like
    devices = tuple(device for profile in profiles for device in profile.devices)
    if not all(profile.hosts for profile in profiles):
        widest = max(profiles, key=lambda profile: len(profile.devices))
        links = _for_ranks(widest, len(devices))
        return like.model_copy(update={"devices": devices, "hosts": (), "links": links})
    names = [device.host for device in devices]
    renumbered: list[LinkTimes] = []
    begin = 0
    for profile in profiles:
        count = len(profile.devices)
        for link in profile.links:
            ranks = tuple(begin + rank for rank in link.ranks or range(count))
            renumbered.append(link.model_copy(update={"ranks": ranks}))
        begin += count
    if len(set(names)) > 1 and not any(
        len({names[rank] for rank in link.ranks}) > 1 for link in renumbered
    ):
        raise HetmpError(
            f"the profiles are of the hosts {', '.join(sorted(set(names)))}, and none has times of "
            "exchanges between hosts: measure them in one job, or give latency and bandwidth in "
            "the file of --ranks-from"
        )
    hosts = tuple(names.index(name) for name in names)
    return like.model_copy(update={"devices": devices, "hosts": hosts, "links": tuple(renumbered)})


def links_of(latency: float, bandwidth: float, ranks: int) -> tuple[LinkTimes, ...]:
    """Compute link times from latency (s) and bandwidth (bytes/s), in the form of measured ones.

    They are of collectives over *ranks* ranks; one rank has none. Source: Thakur, Rabenseifner and
    Gropp (2005): recursive doubling and halving.
    """
    if ranks == 1:
        return ()
    steps = (ranks - 1).bit_length()
    part = (ranks - 1) / ranks
    times = {
        "Allgatherv": (steps, part),
        "Reduce_scatter": (steps, part),
        "Allreduce": (2 * steps, 2 * part),
        "Alltoallv": (ranks - 1, part),
        TURN: (ranks - 1, part / ranks),
    }
    return tuple(
        LinkTimes(
            collective=name,
            bytes=SIZES,
            largest=(1 / ranks,) * len(SIZES),
            seconds=tuple(starts * latency + moved * size / bandwidth for size in SIZES),
        )
        for name, (starts, moved) in times.items()
    )


def _for_ranks(profile: Profile, ranks: int) -> tuple[LinkTimes, ...]:
    """Return the links between all ranks of a profile, for so many ranks."""
    measured = len(profile.devices)
    links = tuple(link for link in profile.links if not link.ranks)
    if ranks in (1, measured):
        return links
    return Links(links, measured, ranks).as_measured(SIZES)


def _like(profiles: Sequence[Profile]) -> Profile:
    """Return the first profile, if all have the same model, batch size and dtype."""
    first = profiles[0]
    for other in profiles[1:]:
        for what in ("model", "batch_size", "dtype"):
            a, b = getattr(first, what), getattr(other, what)
            if a != b:
                name = what.replace("_", " ")
                raise HetmpError(f"the profiles differ in {name}: {a} and {b}")
    return first


def read_weights(path: str | Path) -> tuple[float, ...]:
    """Read relative speeds from a file: one rank per line, in rank order; # begins a comment.

    A line is a number, or a line of a ``.dist`` file of FuPerMod's partitioner: host, device
    number, number of parts, and perhaps more columns, which are ignored.

    Raises:
        HetmpError: the file cannot be read, or a line has no number.
    """
    lines = read(path, "weights").splitlines()
    weights = []
    for number, line in enumerate(lines, start=1):
        columns = line.partition("#")[0].split()
        if not columns:
            continue
        try:
            weights.append(float(columns[0] if len(columns) == 1 else columns[2]))
        except (ValueError, IndexError):
            raise HetmpError(
                f"weights {path}, line {number}: {line.strip()!r} is neither a number nor host, "
                "device and number of parts"
            ) from None
    if not weights:
        raise HetmpError(f"weights {path}: there is no number in any line")
    return tuple(weights)
