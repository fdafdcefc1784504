"""The profile: measured times of a model's operations on each rank, and of the links.

JSON, so that it can be looked at, merged and used again: see ``docs/profile-format.md``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator

from hetmp.core.documents import load
from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.ops import SchemeName
from hetmp.planner.profiling.work import Kind

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

OPTIMIZER = "optimizer"
"""The work of the optimizer's step; its counts are thousandths of the parameters' bytes."""

THOUSANDTHS = 1000


class WorkTimes(BaseModel):
    """Times of one kind of work on a device, as a function of the share done there."""

    model_config = _CONFIG

    work: str
    """The operation, its settings and the sizes of the whole values."""
    kind: Kind
    """The scheme of a layer that mixes channels; channelwise for any other operation."""
    total: int = Field(ge=1)
    """The length of the axis that is cut; 1 for work that is never cut."""
    counts: tuple[int, ...] = Field(min_length=1)
    """Ascending: how many channels of *total* were this rank's."""
    forward: tuple[NonNegativeFloat, ...]
    """Seconds of a batch's forward pass, by count."""
    backward: tuple[NonNegativeFloat, ...]
    """Seconds of its backward pass without *parameters*."""
    parameters: tuple[NonNegativeFloat, ...]
    """Seconds of the parameters' gradients, if computed while the input's gradient travels."""
    saved: tuple[NonNegativeFloat, ...]
    """Bytes that are kept from the forward to the backward pass."""

    @model_validator(mode="after")
    def _columns_are_alike(self) -> "WorkTimes":
        if list(self.counts) != sorted(set(self.counts)):
            raise ValueError(f"the counts of {self.work!r} must ascend: {self.counts}")
        if self.counts[0] < 0 or self.counts[-1] > self.total:
            raise ValueError(
                f"the counts of {self.work!r} must be within 0 to {self.total}: {self.counts}"
            )
        for name in ("forward", "backward", "parameters", "saved"):
            if len(getattr(self, name)) != len(self.counts):
                raise ValueError(f"{name} of {self.work!r} needs one figure for every count")
        return self


class Workspace(BaseModel):
    """What a step needs for a while beside what its values take: copies that libraries make."""

    model_config = _CONFIG

    scheme: SchemeName
    """Of every layer."""
    share: float = Field(ge=0, le=1)
    """Of the channels or images that were this rank's."""
    bytes: float = Field(ge=0)


class DeviceProfile(BaseModel):
    """One rank's device, and the times of the model's operations on it."""

    model_config = _CONFIG

    host: str
    device: str
    """The GPU's or the processor's name."""
    threads: int = Field(ge=1)
    """Threads that the rank computes with, where it computes on a processor."""
    slowdown: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Factor by which it was slowed on purpose: a test aid."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of torch, MPI and the like at the measurement."""
    memory: int = Field(ge=0)
    """Bytes that were free for the rank."""
    rest: NonNegativeFloat
    """Seconds of a step that belong to no operation: loss, bookkeeping."""
    handling: NonNegativeFloat = 0.0
    """Seconds that the rank spends around an exchange, there and back, besides the exchange."""
    works: tuple[WorkTimes, ...]
    workspace: tuple[Workspace, ...] = ()
    """Empty where the system does not say how much memory a process had at most."""
    on_gpu: bool = False
    """Whether the rank computes on a GPU: exchanged values are packed in the host's memory."""

    @property
    def title(self) -> str:
        """Return the name of the device with its settings, without the host."""
        return title_of(self.device, self.threads, self.slowdown)


def title_of(device: str, threads: int, slowdown: float) -> str:
    """Return a text that identifies a device with its threads and slowdown."""
    several = f" x{threads}" if threads > 1 else ""
    slowed = f", slowed {slowdown:g} times" if slowdown > 1 else ""
    return f"{device}{several}{slowed}"


class LinkTimes(BaseModel):
    """Times of one kind of exchange on these ranks."""

    model_config = _CONFIG

    collective: str
    """``Allgatherv``, ``Reduce_scatter``, ``Allreduce``, ``Alltoallv``, or ``Alltoallv, two axes``,
    which turns slices of the batch into slices of the channels."""
    bytes: tuple[int, ...]
    """Size of the whole value, for every measurement."""
    largest: tuple[float, ...]
    """The largest rank's share of it, from 0 to 1."""
    seconds: tuple[NonNegativeFloat, ...]
    """Seconds from the moment when all ranks have arrived until the last one has its part."""
    hidden: float = Field(default=0.0, ge=0, le=1)
    """The part of it that does not show when it goes on beside work; of ``Allreduce``, else 0."""
    ranks: tuple[int, ...] = ()
    """Between which ranks, ascending; empty: all."""

    @model_validator(mode="after")
    def _columns_are_alike(self) -> "LinkTimes":
        if not len(self.bytes) == len(self.largest) == len(self.seconds):
            raise ValueError(
                f"bytes, largest and seconds of {self.collective} must have the same length"
            )
        return self


class Profile(BaseModel):
    """The measured times of one model on one set of ranks."""

    model_config = _CONFIG

    format: Literal["hetmp-profile"] = "hetmp-profile"
    version: Literal[1, 2] = 2
    """1: without *hosts*, and with links between all ranks alone."""
    created: str
    """Date and time, ISO 8601."""
    model: str
    """The network's name, for the reader."""
    batch_size: int = Field(ge=1)
    """Images of a step."""
    dtype: str
    devices: tuple[DeviceProfile, ...] = Field(min_length=1)
    """One per rank."""
    hosts: tuple[int, ...] = ()
    """For each rank, the first rank on the same host; empty if that is not known."""
    links: tuple[LinkTimes, ...] = ()
    """Links between these ranks, and between some of them; empty for one rank."""

    @model_validator(mode="after")
    def _ranks_are_there(self) -> "Profile":
        count = len(self.devices)
        if self.hosts and len(self.hosts) != count:
            raise ValueError(f"hosts has {len(self.hosts)} entries for {count} ranks")
        for rank in (*self.hosts, *(rank for link in self.links for rank in link.ranks)):
            if not 0 <= rank < count:
                raise ValueError(f"there is no rank {rank} among {count}")
        return self

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        # Jobs that start together may keep the profile of the same device.
        with replacing(Path(path), contended=True) as beside:
            beside.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Read a profile from JSON.

        Raises:
            HetmpError: the file cannot be read, or an entry is wrong: its place and the reason.
        """
        return load(cls, path, "profile")

    def check_batch(self, batch_size: int, dtype: str) -> None:
        """Refuse work that differs from the measured one.

        Raises:
            HetmpError: another batch size or dtype.
        """
        for what, measured, wanted in (
            ("batch size", self.batch_size, batch_size),
            ("dtype", self.dtype, dtype),
        ):
            if measured != wanted:
                raise HetmpError(
                    f"the profile was measured with {what} {measured}, this run has {what} "
                    f"{wanted}: run hetmp profile again with {wanted}"
                )

    def check_devices(self, titles: Sequence[str]) -> None:
        """Refuse ranks that differ from the measured ones.

        Raises:
            HetmpError: not one device per rank, or another device on one of them.
        """
        if len(titles) != len(self.devices):
            raise HetmpError(
                f"the profile has {len(self.devices)} ranks, this job has {len(titles)}: run "
                "hetmp profile on them, or plan with --ranks-from"
            )
        for rank, (title, measured) in enumerate(zip(titles, self.devices, strict=True)):
            if title != measured.title:
                raise HetmpError(
                    f"rank {rank} is {title}, the profile has {measured.title} there: run hetmp "
                    "profile on these ranks"
                )
