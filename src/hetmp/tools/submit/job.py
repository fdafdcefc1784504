"""The settings of a job: checked when made, every field with its meaning."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from hetmp.core.documents import read, validated
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

Whole = Annotated[int, Field(ge=1)]


def _is_a_word(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._%+\[\]=,:@&|*()/-]+", value):
        raise ValueError(
            f"{value!r} cannot be put into a script: use letters, digits and ._%+[]=,:@&|*()/-, "
            "no spaces or quotes"
        )
    return value


Word = Annotated[str, AfterValidator(_is_a_word)]
"""Text that needs no quoting in a script."""


class Component(BaseModel):
    """Nodes of one kind."""

    model_config = _CONFIG

    partition: Word | None = None
    """Partition of the nodes."""
    constraint: Word | None = None
    """Features that the nodes must have."""
    nodes: str = "1"
    """Number of nodes: 2, or 1-4 for as many of them as are free."""
    tasks_per_node: Whole = 1
    """Ranks on each node: one per GPU, or one in all."""
    cpus_per_task: Whole = 2
    """Cores for each rank."""
    gpus_per_task: Annotated[int, Field(ge=0)] = 0
    """GPUs for each rank; it uses one."""
    mem: Word | None = None
    """Memory of each node, such as 16G; the site's default if not given."""

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes_are_a_range(cls, value: Any) -> str:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(value))
        if match is None or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(
                f"{value!r} is neither a number of nodes such as 2 nor a range such as 1-4"
            )
        return str(value)

    @model_validator(mode="after")
    def _range_has_one_task_each(self) -> "Component":
        if "-" in self.nodes and self.tasks_per_node > 1:
            raise ValueError(
                f"for nodes {self.nodes} with {self.tasks_per_node} tasks each, Slurm would give "
                "the fewest: give one number of nodes, or 1 task per node"
            )
        return self

    def options(self) -> list[str]:
        """Return the options of sbatch that request this component."""
        # With a number of tasks, Slurm gives the fewest nodes of a range that suffice.
        fixed = "-" not in self.nodes
        values = {
            "partition": self.partition,
            "constraint": self.constraint,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node if fixed else None,
            "cpus-per-task": self.cpus_per_task,
            "gpus-per-task" if fixed else "gpus-per-node": self.gpus_per_task or None,
            "mem": self.mem,
        }
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    def untold(self) -> str:
        """Return the settings that a running job cannot see, in the form of ``parse``."""
        values = {"constraint": self.constraint, "mem": self.mem}
        return "".join(f",{name}={value}" for name, value in values.items() if value is not None)

    @classmethod
    def parse(cls, text: str) -> "Component":
        """Parse ``partition=fast,nodes=2,gpus_per_task=1``.

        Raises:
            HetmpError: an unknown name, or a wrong value.
        """
        fields: dict[str, str] = {}
        for part in re.split(r",(?=[\w-]+=)", text):  # a constraint may have commas
            name, equals, value = part.partition("=")
            name = name.strip().replace("-", "_")
            if not equals:
                raise HetmpError(f"component {text!r}: {part!r} is not name=value")
            if name not in cls.model_fields:
                raise unknown_name("component setting", name, cls.model_fields)
            fields[name] = value.strip()
        return validated(cls, fields, f"component {text!r}")


class Job(BaseModel):
    """The settings of one job."""

    model_config = _CONFIG

    name: Word = "hetmp"
    """Name of the job in the queue."""
    time: Word = "01:00:00"
    """Time limit, as sbatch takes it; a run is requeued up to max_restarts times."""
    account: Word | None = None
    """Account to charge."""
    qos: Word | None = None
    """Quality of service."""
    output: Word = "%x-%j.out"
    """The job's log: %x is its name, %j its number."""
    components: tuple[Component, ...] = Field(default=(Component(),), min_length=1)
    """The nodes; more than one entry makes a heterogeneous job."""
    options: tuple[str, ...] = ()
    """More options of sbatch, each as --name=value."""
    arguments: tuple[str, ...] = ()
    """Arguments of `hetmp train` (or profile, evaluate) in the job."""
    run: str | None = None
    """Folder of the run, an older one to continue it; runs/NAME-NUMBER if not given."""
    profiles: str = "runs/profiles"
    """Folder of measured times by kind of node."""
    checkpoint_every: Word = "10min"
    """How often to save a checkpoint: 500 (steps), 2epochs, 90s, 10min, 1h."""
    signal: str = "USR2"
    """Signal to send before the time limit."""
    notice: Annotated[int, Field(ge=1, le=65535)] = 120
    """Seconds before the limit to send it: enough for a step, an evaluation and a checkpoint.
    Slurm may be up to 60 s early."""
    max_restarts: Annotated[int, Field(ge=0)] = 10
    """How often to requeue a run that has not ended in time."""
    mpi: Word = "auto"
    """Value for srun --mpi=; auto: the one that fits the MPI library and the site."""

    def same_flags(self) -> list[str]:
        """Return the flags of `hetmp submit` for a job like this one on other nodes."""
        changed = self.model_dump(exclude_defaults=True, include=set(_FLAGS))
        flags = [
            word
            for name in _FLAGS
            if name in changed
            for word in (f"--{name.replace('_', '-')}", str(changed[name]))
        ]
        return flags + [f"--option={option}" for option in self.options]

    @field_validator("signal")
    @classmethod
    def _is_a_signal(cls, value: str) -> str:
        if value not in ("USR1", "USR2"):
            raise unknown_name("signal", value, ("USR1", "USR2"))
        return value

    @field_validator("options")
    @classmethod
    def _are_options(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not re.fullmatch(r"--?[A-Za-z][^\n]*", value):
                raise ValueError(
                    f"{value!r} is not an option of sbatch such as --reservation=night"
                )
        return values


_FLAGS = (
    "name", "time", "account", "qos", "profiles", "checkpoint_every", "signal", "notice",
    "max_restarts",
)  # fmt: skip
"""The fields of a job that are flags of `hetmp submit` and do not concern its nodes."""

_DIGITS = ("--model", "digits", "--data", "digits", "--epochs", "12")

TEMPLATES: dict[str, dict[str, Any]] = {
    "train": {
        "name": "hetmp-train",
        "components": ({"nodes": "1-2"},),
        "arguments": _DIGITS,
    },
    "train_hetero": {
        "name": "hetmp-train",
        "components": ({"gpus_per_task": 1}, {"gpus_per_task": 1}, {}),
        "arguments": _DIGITS,
    },
    "profile": {"name": "hetmp-profile", "time": "00:30:00", "arguments": ("digits",)},
    "evaluate": {"name": "hetmp-evaluate", "time": "00:30:00"},
}
"""The default settings of a job, by template."""


def read_job(path: str | Path) -> dict[str, Any]:
    """Read a job file (TOML): the fields of a job, and ``template``.

    Raises:
        HetmpError: it cannot be read.
    """
    try:
        return tomllib.loads(read(path, "job"))
    except tomllib.TOMLDecodeError as error:
        raise HetmpError(f"job {path} cannot be read: {error}") from error


def make_job(
    template: str,
    settings: Mapping[str, Any],
    nodes: Mapping[str, Any] | None = None,
    source: str = "job",
) -> Job:
    """Make a job from a template's defaults and the given fields.

    Args:
        settings: fields of the job.
        nodes: fields of its only component.
        source: origin of the fields, for messages.

    Raises:
        HetmpError: an unknown template or field; a wrong value, with its place and the reason;
            or ``--out`` among the arguments of a training run.
    """
    if template not in TEMPLATES:
        raise unknown_name("job template", template, TEMPLATES)
    for name in settings:
        if name not in Job.model_fields:
            raise unknown_name("job setting", name, Job.model_fields)
    fields = {**TEMPLATES[template], **settings}
    if nodes:
        components = validated(Job, fields, source).components
        if len(components) > 1:
            raise HetmpError(
                f"--{next(iter(nodes)).replace('_', '-')} is ambiguous for a job of "
                f"{len(components)} components: put it into --component"
            )
        fields["components"] = ({**components[0].model_dump(exclude_unset=True), **nodes},)
    job = validated(Job, fields, source)
    outs = [word for word in job.arguments if word == "--out" or word.startswith("--out=")]
    if outs and template.startswith("train"):
        raise HetmpError("give the run's folder by --run of hetmp submit, not by --out in the job")
    return job
