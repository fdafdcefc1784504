"""The plan: partitions and schemes for one model on one cluster, as a document.

JSON: ``{"format": "hetmp-plan", "version": 4, "ranks": 3, "layers": [{"name": "features.0",
"kind": "Conv2d", "channels": 60, "scheme": "filters", "counts": [42, 15, 3], "weights": [],
"pieces": [], "backward": null}, ...]}``. A layer whose channels come in several pieces, each cut on
its own, has the counts of each: ``"pieces": [[21, 8, 1], [21, 7, 2]]``. A layer of scheme ``batch``
has the ranks' shares of a batch: ``"weights": [70.0, 25.0, 5.0]``. ``"backward": "regather"`` says
what is kept of a layer for the backward pass. What ``hetmp plan`` adds: see
``docs/plan-format.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    field_validator,
    model_validator,
)

from hetmp.core.documents import load, validated
from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.core.partition import Layout, Partition, Piece, apportion, checked_weights
from hetmp.core.suggestions import unknown_name
from hetmp.ops import SCHEMES, SchemeName
from hetmp.slicing.picture import html_of

VERSION: Literal[4] = 4
"""Of the format that is written: 2 added ``predicted``, 3 scheme ``batch`` and its ``weights``, 4
``backward`` and ``predicted_alternatives``."""

Backward = Literal["keep", "regather", "recompute"]
"""What the backward pass has of a layer: see ``LayerPlan.backward``."""


class LayerPlan(BaseModel):
    """How one channel-mixing layer is cut."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """The layer's path in the module, for example ``features.0``."""
    kind: str
    """The layer's class, for the reader."""
    channels: int = Field(ge=0)
    """The length of the axis that is cut: output channels or features."""
    scheme: SchemeName = "filters"
    """``filters`` (full to sliced), ``inputs`` (sliced to partial), ``batch`` or ``whole``."""
    counts: tuple[int, ...]
    """Output channels on each rank; with ``batch`` and ``whole`` they are not used."""
    weights: tuple[NonNegativeFloat, ...] = ()
    """Each rank's share of a batch where the scheme is ``batch``, else nothing."""
    pieces: tuple[tuple[int, ...], ...] = ()
    """Where the channels come in several pieces, each cut on its own: the counts of each."""
    backward: Backward | None = None
    """What the backward pass has of the layer. ``keep``: its gathered input. ``regather``: this
    rank's share of that, to gather it again for the parameters' gradients. ``recompute``: this
    rank's share alone, from which the layer and the channel-wise operations behind it are computed
    again. None: what the run says for all layers, ``Tuning.regather``."""

    @model_validator(mode="after")
    def _counts_fill_the_axis(self) -> "LayerPlan":
        if self.partition.total != self.channels:
            raise ValueError(
                f"counts {self.counts} sum to {sum(self.counts)}, the layer has {self.channels} "
                "channels"
            )
        sums = tuple(sum(column) for column in zip(*self.pieces, strict=True))
        if self.pieces and sums != self.counts:
            raise ValueError(f"pieces {self.pieces} sum to {sums}, counts are {self.counts}")
        if self.cuts_batch:
            checked_weights(self.weights, len(self.counts))
        elif self.weights:
            raise ValueError(f"weights {self.weights} are for scheme 'batch', not {self.scheme!r}")
        return self

    @property
    def partition(self) -> Partition:
        """The counts as a partition."""
        return Partition(self.counts)

    @property
    def is_cut(self) -> bool:
        """Whether the layer's output channels are divided among the ranks."""
        return SCHEMES[self.scheme].cuts_outputs

    @property
    def cuts_batch(self) -> bool:
        """Whether every rank computes all channels of its share of the images."""
        return SCHEMES[self.scheme].cuts_batch

    @property
    def shares(self) -> tuple[int, ...]:
        """How many of its channels each rank has, or as many as are its share of the images.

        Nothing where every rank computes the layer whole.
        """
        if self.cuts_batch:
            return apportion(self.channels, self.weights).counts
        return self.counts if self.is_cut else ()

    @property
    def layout(self) -> Layout:
        """How the output channels are cut."""
        return Layout(tuple(Piece(Partition(counts)) for counts in self.pieces or (self.counts,)))


class PredictedLayer(BaseModel):
    """The predicted time of a layer, and of the channel-wise work behind it, in a step."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """The layer's path; empty for what comes before the first."""
    compute: tuple[NonNegativeFloat, ...]
    """Seconds of every rank that takes part, forward and backward."""
    exchange: NonNegativeFloat
    """Seconds of the exchanges in front of it."""
    idle: tuple[NonNegativeFloat, ...]
    """Seconds that every rank that takes part waits there for others."""


class Plan(BaseModel):
    """Partitions and schemes for one model on a number of ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["hetmp-plan"] = "hetmp-plan"
    version: Literal[1, 2, 3, 4] = VERSION
    """Of the format. A plan of an older one is of this one when it has been read."""
    ranks: int = Field(ge=1)
    """How many ranks the plan is for."""
    layers: tuple[LayerPlan, ...]
    """One entry per channel-mixing layer, in the order in which they run."""
    left_out: tuple[int, ...] = ()
    """Ranks that take no part: every count of theirs is 0, and they wait until the others end."""
    fingerprint: str = ""
    """Of the model that it was planned for; empty where it is for any that its layers fit."""
    devices: tuple[str, ...] = ()
    """Each rank's device that it was planned for; empty where it is for any."""
    predicted_seconds: float | None = None
    """Of a training step."""
    predicted: tuple[PredictedLayer, ...] = ()
    """Where a step's seconds go, layer by layer; empty where nothing was predicted."""
    predicted_alternatives: dict[str, NonNegativeFloat] = {}
    """The seconds of a step by other ways to use the ranks, by their names."""

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_known(cls, version: Any) -> Any:
        if type(version) is int and version > VERSION:
            raise ValueError(
                f"{version} is newer than this hetmp reads (1 to {VERSION}): use a newer hetmp, or "
                "make the plan again"
            )
        return version

    @field_validator("version")
    @classmethod
    def _version_is_the_newest(cls, version: int) -> int:
        return VERSION

    @model_validator(mode="after")
    def _counts_are_per_rank(self) -> "Plan":
        for layer in self.layers:
            if len(layer.counts) != self.ranks:
                raise ValueError(
                    f"layer {layer.name!r} has {len(layer.counts)} counts, the plan is for "
                    f"{self.ranks} ranks"
                )
        if self.devices and len(self.devices) != self.ranks:
            raise ValueError(f"{len(self.devices)} devices for {self.ranks} ranks")
        for rank in self.left_out:
            if not 0 <= rank < self.ranks:
                raise ValueError(f"left_out names rank {rank} of {self.ranks}")
            for layer in self.layers:
                if layer.counts[rank] or any(layer.weights[rank : rank + 1]):
                    what = "channels" if layer.counts[rank] else "images"
                    raise ValueError(
                        f"left_out names rank {rank}, which has {what} of {layer.name!r}"
                    )
        if len(set(self.left_out)) == self.ranks:
            raise ValueError("left_out names every rank")
        return self

    def check_ranks(self, ranks: int) -> None:
        """Refuse a job with another number of ranks.

        Raises:
            HetmpError: naming both.
        """
        if self.ranks != ranks:
            raise HetmpError(
                f"the plan is for {self.ranks} rank{'s' * (self.ranks != 1)}, this job has "
                f"{ranks}: make a plan for {ranks}"
            )

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that take part."""
        return tuple(rank for rank in range(self.ranks) if rank not in self.left_out)

    @property
    def held(self) -> tuple[int, ...]:
        """The number of channels of each rank, over all layers that are shared.

        Where images are shared, a rank's share of them stands for as many of the channels.
        """
        shares = [layer.shares for layer in self.layers if layer.shares]
        return tuple(sum(counts[rank] for counts in shares) for rank in range(self.ranks))

    @property
    def shared(self) -> str:
        """What the ranks share: ``channels``, ``images``, or both."""
        images = any(layer.cuts_batch for layer in self.layers)
        channels = any(layer.shares and not layer.cuts_batch for layer in self.layers)
        return " and ".join(["channels"] * (channels or not images) + ["images"] * images)

    def of_members(self) -> "Plan":
        """Return the plan of the ranks that take part alone, renumbered from 0."""
        if not self.left_out:
            return self

        def selected(counts: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(counts[rank] for rank in self.members)

        devices = selected(self.devices) if self.devices else ()
        return self._with_ranks(selected, len(self.members), (), devices)

    def spread(self, members: Sequence[int], ranks: int) -> "Plan":
        """Return this plan for *members* among *ranks*: the inverse of ``of_members``."""
        place = {rank: i for i, rank in enumerate(members)}

        def all_ranks(counts: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(counts[place[rank]] if rank in place else 0 for rank in range(ranks))

        left_out = tuple(rank for rank in range(ranks) if rank not in place)
        return self._with_ranks(all_ranks, ranks, left_out, ())

    def _with_ranks(
        self,
        changed: Callable[[Sequence[Any]], tuple[Any, ...]],
        ranks: int,
        left_out: tuple[int, ...],
        devices: tuple[str, ...],
    ) -> "Plan":
        """Return this plan with *changed* counts for every layer and piece."""
        layers = tuple(
            layer.model_copy(
                update={
                    "counts": changed(layer.counts),
                    "pieces": tuple(map(changed, layer.pieces)),
                    "weights": changed(layer.weights) if layer.weights else (),
                }
            )
            for layer in self.layers
        )
        update = {"ranks": ranks, "layers": layers, "left_out": left_out, "devices": devices}
        return self.model_copy(update=update)

    def layer(self, name: str) -> LayerPlan:
        """Return the entry of a layer.

        Raises:
            HetmpError: the plan has no such layer.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise unknown_name("layer", name, [layer.name for layer in self.layers])

    def with_layer(
        self,
        name: str,
        *,
        scheme: SchemeName | None = None,
        counts: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> "Plan":
        """Return this plan with another scheme, other counts or weights for one layer.

        Args:
            name: the layer's path in the model.
            scheme: its new scheme; None to keep it.
            counts: its new output channels of each rank; None to keep them.
            weights: its new shares of a batch, for scheme ``batch``; None to keep them, or to
                share a batch as its channels were.

        Raises:
            HetmpError: no such layer or scheme, counts that do not fill it, or weights that cannot
                be used.
        """
        old = self.layer(name)
        if scheme is not None and scheme not in SCHEMES:
            raise unknown_name("scheme", scheme, SCHEMES)
        changed = old.model_dump() | {"scheme": scheme or old.scheme, "weights": ()}
        if SCHEMES[changed["scheme"]].cuts_batch:
            changed["weights"] = tuple(weights or old.weights or counts or old.counts)
        if counts is not None:
            changed |= {"counts": tuple(counts), "pieces": ()}
        layers = [changed if layer.name == name else layer.model_dump() for layer in self.layers]
        nothing: dict[str, Any] = {
            "predicted_seconds": None,
            "predicted": (),
            "predicted_alternatives": {},
        }
        fields = self.model_dump() | {"layers": layers, **nothing}
        return validated(Plan, fields, "plan")

    def with_backward(self, choices: Mapping[str, Backward | None]) -> "Plan":
        """Return this plan with other choices of what the backward pass has of some layers.

        Args:
            choices: ``keep``, ``regather``, ``recompute`` or None, as in ``LayerPlan.backward``, by
                the layers' paths; ``*``, ``?`` and ``[...]`` stand for what they do in file names.
                Where two fit a layer, the last counts.

        Raises:
            HetmpError: no layer has such a path, or there is no such choice.
        """
        if not choices:
            return self
        chosen: dict[str, Backward | None] = {}
        for pattern, choice in choices.items():
            if choice is not None and choice not in get_args(Backward):
                raise unknown_name("backward", choice, get_args(Backward))
            fitting = [x.name for x in self.layers if fnmatchcase(x.name, pattern)]
            if not fitting:
                raise unknown_name("layer", pattern, [layer.name for layer in self.layers])
            chosen |= dict.fromkeys(fitting, choice)
        layers = tuple(
            x.model_copy(update={"backward": chosen[x.name]}) if x.name in chosen else x
            for x in self.layers
        )
        nothing = {"predicted_seconds": None, "predicted": ()}
        return self.model_copy(update={"layers": layers, **nothing})

    def backward_by_layer(self, regather: bool) -> dict[str, Backward]:
        """Return what the backward pass has of each layer, by its path.

        *regather* is the run's choice (``Tuning.regather``) for layers that make none.
        """
        usual: Backward = "regather" if regather else "keep"
        return {layer.name: layer.backward or usual for layer in self.layers}

    def _repr_html_(self) -> str:
        return html_of(self)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON. Several ranks may write one file."""
        with replacing(Path(path), contended=True) as beside:
            beside.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan from JSON.

        Raises:
            HetmpError: the file cannot be read, or an entry is wrong: its place and the reason.
        """
        return load(cls, path, "plan")
