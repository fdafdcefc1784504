"""Slurm, seen from inside a job and from a login node. Imports neither MPI nor torch."""

from hetmp.cluster.slurm.commands import available, called
from hetmp.cluster.slurm.environment import (
    component_tasks,
    cpus_per_task,
    gpus_per_task,
    inside_job,
    node_kind,
    safe_name,
)
from hetmp.cluster.slurm.mpi_types import chosen_mpi_type, fitting, offered_mpi_types

__all__ = [
    "available",
    "called",
    "chosen_mpi_type",
    "component_tasks",
    "cpus_per_task",
    "fitting",
    "gpus_per_task",
    "inside_job",
    "node_kind",
    "offered_mpi_types",
    "safe_name",
]
