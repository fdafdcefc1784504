"""The records of a metrics file that a report needs: read leniently, one model per record.

``docs/formats.md`` has the fields. Times are seconds, sizes bytes, lists a number per rank that
takes part. Fields that an older run did not record have a default, and the report says that they
are missing.
"""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number; JSON's null stands for one that is not finite."""

Numbers = tuple[Number, ...]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class PlannedLayer(_Record):
    """One layer of the plan, with its cut."""

    name: str
    kind: str = ""
    channels: int = 0
    scheme: str = "filters"
    counts: tuple[int, ...] = ()
    weights: Numbers = ()

    @property
    def by_images(self) -> bool:
        """Return whether the ranks share the images of a batch here, and not the channels."""
        return self.scheme == "batch" and len(self.weights) == len(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        """Return each rank's part of the channels or of the images, 0 to 1; 0 if it is whole."""
        parts = self.weights if self.by_images else self.counts
        if self.scheme in ("whole", "batch") and not self.by_images:
            return (0.0,) * len(parts)
        return tuple(part / (sum(parts) or 1) for part in parts)


class PredictedLayerRecord(_Record):
    """Predicted times of one layer; lists are of the members."""

    name: str
    compute: Numbers
    exchange: Number
    idle: Numbers


class PlanRecord(_Record):
    """The plan of all ranks of the job."""

    ranks: int
    layers: tuple[PlannedLayer, ...] = ()
    left_out: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    predicted_seconds: float | None = None
    predicted: tuple[PredictedLayerRecord, ...] = ()
    predicted_alternatives: dict[str, Number] = {}

    @property
    def members(self) -> tuple[int, ...]:
        """Return the ranks that take part."""
        return tuple(rank for rank in range(self.ranks) if rank not in self.left_out)

    @property
    def shared(self) -> str:
        """Return what the ranks share: ``channels``, ``images``, or both."""
        images = any(layer.by_images for layer in self.layers)
        channels = any(sum(layer.shares) and not layer.by_images for layer in self.layers)
        return " and ".join(["channels"] * (channels or not images) + ["images"] * images)


class PlaceRecord(_Record):
    """The place of a rank of the job: host, device, cores."""

    host: str = ""
    kind: str = ""
    device: str = ""
    cores: int = 0
    threads: int = 0
    memory: int = 0


class RunRecord(_Record):
    """The settings and ranks of a run, or of a part of a resumed one."""

    started: str = ""
    steps: int = 0
    resumed: int = 0
    config: dict[str, Any] = {}
    ranks: int = 1
    host: str = ""
    placement: tuple[PlaceRecord, ...] = ()
    mpi: str = ""
    versions: dict[str, str] = {}
    plan: PlanRecord | None = None


class Seconds(_Record):
    """The seconds of a step, by kind and rank."""

    compute: Numbers
    exchange: Numbers
    waiting: Numbers
    reading: Numbers = ()


class StepRecord(_Record):
    """One training step."""

    step: int
    epoch: int = 0
    loss: Number = math.nan
    accuracy: Number = math.nan
    lr: Number = math.nan
    images: int | None = None
    seconds: Seconds | None = None
    skipped: bool = False
    time: float | None = None


class EvaluationRecord(_Record):
    """One pass over the test set; ``step`` counts the steps before it."""

    step: int
    epoch: int = 0
    loss: Number = math.nan
    accuracy: Number = math.nan
    seconds: float | None = None
    time: float | None = None


class WatchedLayer(_Record):
    """Times of one layer, with the channel-wise work behind it."""

    name: str
    forward: Numbers
    backward: Numbers
    exchange: Number
    waiting: Numbers


class WatchedExchange(_Record):
    """One collective of a step, in front of the layer ``name``."""

    name: str
    collective: str
    direction: str
    calls: Number = 1.0
    bytes: Numbers = ()
    seconds: Numbers = ()
    exchange: Number = 0.0
    waiting: Numbers = ()


class Layers(_Record):
    """Medians over the steps that were timed layer by layer."""

    first: int = 0
    steps: int = 0
    images: int | None = None
    layers: tuple[WatchedLayer, ...] = ()
    exchanges: tuple[WatchedExchange, ...] = ()
    rest: dict[str, Numbers] = {}


class WholeModel(_Record):
    """Memory that one process would need."""

    parameters: Number = 0.0
    gradients: Number = 0.0
    optimizer: Number = 0.0


class Memory(_Record):
    """Memory of each rank."""

    parameters: Numbers
    gradients: Numbers
    optimizer: Numbers
    activations: Numbers = ()
    peak: Numbers = ()
    before: Numbers = ()
    whole: WholeModel = WholeModel()
    share: Numbers = ()


class Ending(_Record):
    """The last record of a run."""

    kind: str
    steps: int = 0
    loss: Number = math.nan
    accuracy: Number = math.nan
    time: float | None = None


KINDS: dict[str, type[_Record]] = {
    "run": RunRecord,
    "step": StepRecord,
    "evaluation": EvaluationRecord,
    "layers": Layers,
    "memory": Memory,
    "end": Ending,
    "stopped": Ending,
}
"""The model of each ``kind`` of line; other kinds are skipped."""
