"""This process's Slurm job, from the variables that Slurm sets (srun(1))."""

import os
import platform
import re

from hetmp.cluster.slurm.commands import called
from hetmp.core.errors import HetmpError


def inside_job() -> bool:
    """Return whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def component_tasks() -> tuple[int, ...]:
    """Return the number of tasks of each component of a heterogeneous job; () for other jobs."""
    counts = [
        os.environ.get(f"SLURM_NTASKS_HET_GROUP_{number}", "")
        for number in range(_number("SLURM_HET_SIZE") or 0)
    ]
    return tuple(int(tasks) for tasks in counts) if all(map(str.isdigit, counts)) else ()


def gpus_per_task() -> int | None:
    """Return how many GPUs this task was promised; None if that was not set per task."""
    component = _component()
    group = "" if component is None else f"_HET_GROUP_{component}"
    return _number(f"SLURM_GPUS_PER_TASK{group}")


def _component() -> int | None:
    """Return this task's component of a heterogeneous job; None in any other job."""
    rank, below = _number("SLURM_PROCID"), 0
    for component, tasks in enumerate(component_tasks()):
        below += tasks
        if rank is not None and rank < below:
            return component
    return None


def cpus_per_task() -> int | None:
    """Return how many cores each task was promised; None if that was not set per task."""
    return _number("SLURM_CPUS_PER_TASK")


def node_kind() -> str:
    """Return the kind of this process's node, fit for a file's name.

    ``HETMP_NODE_KIND`` if it is set; else the node's features in Slurm, or else the job's
    partition; outside Slurm the host's name.
    """
    kind = os.environ.get("HETMP_NODE_KIND", "")
    if not kind and "SLURMD_NODENAME" in os.environ:
        kind = _features(os.environ["SLURMD_NODENAME"])
        # In a heterogeneous job all tasks see the last component's partition: it is not a kind.
        if not kind and not component_tasks():
            kind = os.environ.get("SLURM_JOB_PARTITION", "")
    return safe_name(kind or platform.node()) or "node"


def safe_name(text: str) -> str:
    """Replace what has a meaning in file names or shells in *text*.

    >>> safe_name("gpu,a100")
    'gpu-a100'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")


def _features(node: str) -> str:
    try:
        shown = called("scontrol", "show", "node", "--oneliner", node)
    except HetmpError:  # no client commands on this site's compute nodes
        return ""
    match = re.search(r"\bActiveFeatures=(\S+)", shown)
    return "" if match is None or match[1] == "(null)" else match[1]


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else None
