"""The settings of a training run: checked when made, every field with its meaning.

The command line's flags are made from these fields, so each has one name and one description.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hetmp.checkpoint import Cadence
from hetmp.cluster.slowdown import check_slowdown
from hetmp.core.errors import HetmpError
from hetmp.core.partition import checked_weights
from hetmp.core.scheme_choice import WORDS, is_word
from hetmp.core.suggestions import unknown_name
from hetmp.data.options import Options
from hetmp.optim.schedule_names import SCHEDULES

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "float64")
SAVE_ERRORS = ("stop", "continue")
STOP_SIGNALS = ("USR1", "USR2", "TERM")
AUTOCASTS = ("none", "bfloat16", "float16")
NAN_ACTIONS = ("stop", "skip")
VIEWS = ("auto", "live", "lines")
METRICS = ("csv", "tensorboard")

HEADINGS = {
    "model": "The network",
    "data": "The data",
    "weights": "Division of the work",
    "batch_size": "Training",
    "device": "Computation",
    "out": "Output",
    "view": "Display",
    "slowdown": "For tests",
}
"""Headings for help texts and files, each by the first field under it."""

CHOICES = {
    "schedule": SCHEDULES,
    "device": DEVICES,
    "dtype": DTYPES,
    "on_save_error": SAVE_ERRORS,
    "stop_signal": STOP_SIGNALS,
    "on_nan": NAN_ACTIONS,
    "view": VIEWS,
}
"""The fields that take one of a few names."""

OF_DATA = tuple(name for name in Options.names() if name != "seed")
"""The fields that define the data set."""

MOVABLE = "data_path", "test_path"
"""The fields with the data's location, which may change between a run and its resumption."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """The settings of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """Network by name (see `hetmp models`), or package.module:function for your own."""
    data: str
    """Data set by name: digits, digits-segmentation (real images, included), synthetic, or
    your own images: mnist, cifar10, cifar100, hdf5, npz, folder, hyperspectral (see
    data/README.md)."""
    data_path: Path | None = None
    """File or folder of your own data."""
    test_path: Path | None = None
    """File or folder of the test part, if it is not in data_path."""
    images_key: str | None = None
    """Name of the images within an HDF5, npz or mat file."""
    labels_key: str | None = None
    """Name of the labels within an HDF5, npz or mat file."""
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the images to use for testing, if the data does not mark them."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed that chooses the test images, if the data does not mark them."""
    shape: tuple[int, ...] | None = None
    """Shape of an image: channels, then sides, for example 3,32,32. Synthetic images get it, and
    image files are converted to it."""
    classes: int | None = None
    """Number of classes (if not given, taken from the labels)."""
    samples: int | None = None
    """Number of synthetic images."""
    patch: int | None = None
    """Hyperspectral scene: side of the patch around a pixel."""
    disjoint: bool | None = None
    """Hyperspectral scene: patches of training and test pixels do not overlap."""
    mean: tuple[float, ...] | None = None
    """Value to subtract from each channel; the mean of the training images if not given."""
    std: tuple[float, ...] | None = None
    """Value to divide each channel by; the deviation of the training images if not given."""
    flip: bool = False
    """Mirror every other training image, at random."""
    crop: Annotated[int, Field(ge=0)] = 0
    """Pad training images by this many pixels, then crop them to their size at random."""
    readers: Whole = 1
    """Threads of each rank that read images ahead of the training."""
    weights: tuple[float, ...] | Literal["auto", "equal"] | None = None
    """Relative speeds, one per rank, for example 70,25,5, or a file of them. equal, the default:
    the same for every rank. auto: measured, with a plan for every layer (see `hetmp profile` and
    `hetmp plan`)."""
    schemes: str | dict[str, str] | None = None
    """What each rank computes of a layer, where weights divide the work. filters, the default: its
    share of the channels. batch: its share of the images. batch:K: the first K layers by images,
    the rest by channels. Or a JSON file of schemes by layer, {"features.conv1": "batch"}."""
    plan: Path | None = None
    """A plan file (JSON) instead of weights: partitions and schemes layer by layer."""
    profile: Path | None = None
    """Profile of these ranks, from `hetmp profile`; with weights auto, replaces measuring."""
    profiles: Path | None = None
    """Folder of measured times by kind of node. Kinds that it lacks are measured now and stored.
    Implies weights auto if neither weights nor plan is given; unused with other weights or a
    plan."""
    profile_seconds: Positive = 10.0
    """Time for measuring the devices, with weights auto and no profile."""
    batch_size: Whole = 64
    """Images per step, over all ranks."""
    drop_last: bool = False
    """Leave out the short last batch of an epoch."""
    epochs: Whole | None = None
    """Number of passes over the training images; 10 if neither this nor steps is given."""
    steps: Whole | None = None
    """Number of steps to take, instead of epochs."""
    lr: Positive = 0.05
    """Learning rate at the start."""
    optimizer: str = "sgd"
    """Optimizer: an elementwise one of torch.optim (sgd, adamw, rmsprop, ...), lars or lamb."""
    optimizer_options: dict[str, Any] = {}
    """Options of the optimizer, by its own names, for example nesterov=true or betas=[0.9,0.99]."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd and lars."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Weight decay."""
    schedule: str = "cosine"
    """Learning rate over the run: constant, cosine or linear (to 0), polynomial, exponential, step
    (a tenth at each third), milestones (times gamma at each) or onecycle."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate first rises."""
    gamma: Positive | None = None
    """Factor of the learning rate: at each of the milestones, or exponential, at each step."""
    power: Positive | None = None
    """Power of the polynomial schedule."""
    milestones: tuple[int, ...] | None = None
    """Steps at which the learning rate is multiplied by gamma."""
    clip: Positive | None = None
    """Largest norm of all gradients together; not clipped if not given."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label to spread over all classes in training."""
    accumulate: Whole = 1
    """Compute a step's batch in this many parts, one after the other: less memory."""
    share_steps: bool = False
    """Share the optimizer's work on parameters that every rank holds whole, and its state: less
    memory."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay, such as 0.999, of an exponential moving average of the weights, which is then
    evaluated and saved."""
    on_nan: str = "stop"
    """If the loss is not finite: stop; or skip such steps, and those with such gradients."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of the images and dropout."""
    device: str = "auto"
    """auto (a GPU per rank of a host, ranks without one on the CPU), cpu or cuda."""
    dtype: str = "float32"
    """Precision of the weights, and of the computation: float32 or float64."""
    autocast: tuple[str, ...] | None = None
    """Compute convolutions and the like in bfloat16 or float16: one for all ranks, or one for each
    (bfloat16,none)."""
    layerwise: bool = False
    """Initialize the weights layer by layer, so that no rank ever holds the whole network."""
    strict: bool = False
    """Refuse operations that hetmp has no rule for, instead of computing them on every rank."""
    no_verify: bool = False
    """Do not run the network beside what was read of it, before it is sliced."""
    regather: bool = False
    """Gather a layer's input again in the backward pass instead of keeping it: less memory."""
    recompute: tuple[str, ...] | None = None
    """Layers, with * for any part of a name (layer1.*), that the backward pass computes again, with
    the operations behind them, from a rank's share of their input: least memory, more time."""
    no_shared_memory: bool = False
    """Exchange by MPI collectives even if the ranks of a host could share memory."""
    rounded: bool = False
    """Send float32 between layers as bfloat16: half the bytes, and each exchange rounds."""
    out: Path | None = None
    """Folder for metrics.jsonl, plan.json, model.h5 and checkpoints; nothing is saved without."""
    metrics: tuple[str, ...] | None = None
    """Also write the metrics to out as csv (steps.csv, evaluations.csv) or tensorboard."""
    checkpoint_every: str | None = None
    """How often to save a checkpoint: in steps (500), epochs (2epochs) or time (90s, 10min, 1h).
    One more is saved at the end. They go to the folder out."""
    keep: Whole = 2
    """Number of the newest checkpoints to keep."""
    keep_every: Whole | None = None
    """Keep every checkpoint whose step is a multiple of this."""
    save_behind: bool = False
    """Write checkpoints while training continues; needs memory for a copy."""
    on_save_error: str = "stop"
    """If a checkpoint cannot be written: stop, or continue and keep the last one."""
    stop_signal: str = "USR2"
    """Signal that ends a run with `--out` after the current step: it saves a checkpoint and exits
    with 75. SIGTERM does the same."""
    resume: str | None = None
    """Continue from a checkpoint: auto (the newest sound one in out, or from the start), or its
    file or folder."""
    watch: Annotated[int, Field(ge=0)] = 5
    """How many of the first steps to time layer by layer, for `hetmp report`."""
    view: str = "auto"
    """Progress display: live (a frame with a bar per rank), lines (with the time, for logs), or
    auto: live in a terminal, also that of mpirun, else lines."""
    quiet: bool = False
    """Print nothing but errors."""
    slowdown: tuple[float, ...] | None = None
    """Test aid: factor by which to slow each rank down, for example 1,2,4."""

    @field_validator("weights")
    @classmethod
    def _weights_can_be_used(cls, weights: Any) -> Any:
        if weights is not None and not isinstance(weights, str):
            checked_weights(weights)
        return weights

    @field_validator("schemes")
    @classmethod
    def _schemes_are_a_word(cls, schemes: Any) -> Any:
        if isinstance(schemes, str) and not is_word(schemes):
            raise HetmpError(f"schemes {schemes!r} are not known: give {WORDS}, or a file of them")
        return schemes

    @field_validator("slowdown")
    @classmethod
    def _slowdown_can_be_used(cls, slowdown: tuple[float, ...] | None) -> tuple[float, ...] | None:
        check_slowdown(slowdown or ())
        return slowdown

    @field_validator("autocast")
    @classmethod
    def _autocast_is_known(cls, autocast: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for value in autocast or ():
            if value not in AUTOCASTS:
                raise unknown_name("autocast", value, AUTOCASTS)
        return autocast

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, metrics: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for value in metrics or ():
            if value not in METRICS:
                raise unknown_name("metrics", value, METRICS)
        return metrics

    @field_validator(*CHOICES)
    @classmethod
    def _is_a_choice(cls, value: str, info: Any) -> str:
        if value not in CHOICES[info.field_name]:
            raise unknown_name(info.field_name, value, CHOICES[info.field_name])
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> "TrainConfig":
        if self.weights is not None and self.plan is not None:
            raise HetmpError("weights and plan both set how layers are cut: give one of them")
        if self.schemes is not None and self.plan is not None:
            raise HetmpError(
                "schemes and plan both set what a rank computes of a layer: give one of them"
            )
        if self.schemes is not None and self.plans:
            raise HetmpError(
                "schemes are for weights that are given: weights auto makes a plan, which has "
                "schemes of its own; give --weights 70,25,5 or equal, or leave --schemes out"
            )
        if self.profile is not None and self.profiles is not None:
            raise HetmpError("profile and profiles both set the devices' times: give one of them")
        if self.profile is not None and self.weights != "auto":
            raise HetmpError("--profile is only used by --weights auto: give both, or neither")
        if self.epochs is not None and self.steps is not None:
            raise HetmpError("epochs and steps both set how long to train: give one of them")
        if self.checkpoint_every is not None:
            Cadence.parse(self.checkpoint_every)
        if self.out is None and (self.checkpoint_every is not None or self.resume == "auto"):
            what = "checkpoint_every" if self.checkpoint_every is not None else "resume auto"
            raise HetmpError(f"{what} needs a folder for the checkpoints: give --out")
        if self.out is None and self.metrics:
            raise HetmpError(f"metrics {self.metrics[0]} needs a folder for its files: give --out")
        return self

    @property
    def plans(self) -> bool:
        """Return whether the run plans its layers when it starts."""
        unsaid = self.weights is None and self.plan is None
        return self.weights == "auto" or (unsaid and self.profiles is not None)

    @property
    def keywords_of_optimizer(self) -> dict[str, Any]:
        """The optimizer's keyword arguments; ``optimizer_options`` win over the shared fields."""
        shared: dict[str, Any] = {"weight_decay": self.weight_decay}
        name = self.optimizer.lower()
        if name in ("sgd", "lars"):
            shared["momentum"] = self.momentum
        if name == "rprop":  # the one that knows no weight decay
            del shared["weight_decay"]
        return {**shared, **self.optimizer_options}

    def in_order(self, order: Sequence[int]) -> "TrainConfig":
        """Return the same run for reordered ranks: new rank *i* is the present ``order[i]``."""
        lists = {
            name: tuple(values[rank] for rank in order)
            for name in ("weights", "slowdown", "autocast")
            if isinstance(values := getattr(self, name), tuple) and len(values) == len(order)
        }
        return self.model_copy(update=lists)

    def lasting(self, steps: int) -> dict[str, Any]:
        """Return the settings that must not change when a run of *steps* steps is resumed."""
        names = (
            "model", "batch_size", "lr", "optimizer", "optimizer_options", "momentum",
            "weight_decay", "schedule", "warmup", "gamma", "power", "milestones", "clip",
            "label_smoothing", "accumulate", "average", "seed", "dtype", "drop_last", "flip",
            "crop", "data", *OF_DATA,
        )  # fmt: skip
        settings = self.model_dump(mode="json", include=set(names))
        # The learning rate follows the length of the run, unless it is constant.
        if self.schedule != "constant":
            settings["steps"] = steps
        for name in MOVABLE:
            settings[name] = (
                None if settings[name] is None else str(Path(settings[name]).absolute())
            )
        return settings

    def data_settings(self) -> dict[str, Any]:
        """Return the settings of the data set: the fields of ``hetmp.data.Options``."""
        return {name: getattr(self, name) for name in OF_DATA}

    def total_steps(self, per_epoch: int) -> int:
        """Return the number of steps of the run, at *per_epoch* steps an epoch."""
        return self.steps if self.steps is not None else (self.epochs or 10) * per_epoch

    def total_epochs(self, per_epoch: int) -> int:
        """Return the number of epochs that the run begins, at *per_epoch* steps an epoch."""
        return math.ceil(self.total_steps(per_epoch) / per_epoch)


def train_config(**values: Any) -> TrainConfig:
    """Make a checked configuration; fields whose value is None keep their default.

    Raises:
        HetmpError: the first wrong field, its value and the values it may have.
    """
    try:
        return TrainConfig(**{name: v for name, v in values.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, HetmpError):
            raise cause from None
        raise HetmpError(f"{field}: {first['msg']}, got {first['input']!r}") from None
