"""What the launcher's environment says about this process, and whether MPI agrees."""

import os
import sys

from hetmp.cluster.group import Group
from hetmp.cluster.mpi import mpi, mpi_library
from hetmp.cluster.slurm import component_tasks
from hetmp.core.errors import HetmpError


def launched() -> tuple[int, int] | None:
    """Return (rank, size) from the launcher's environment, without MPI; None if not launched."""
    for rank_name, size_name in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's mpirun
        ("PMI_RANK", "PMI_SIZE"),  # MPICH's mpirun, srun --mpi=pmi2
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
    ):
        rank, size = os.environ.get(rank_name), os.environ.get(size_name)
        if rank is not None and size is not None and rank.isdigit() and size.isdigit():
            return int(rank), int(size)
    return None


def speaks_first() -> bool:
    """Return whether this process prints the messages that every rank would print.

    The launcher knows before MPI starts, and where MPI fell apart into lonely worlds.
    """
    started = launched()
    if started is not None:
        return started[0] == 0
    return "mpi4py.MPI" not in sys.modules or mpi().COMM_WORLD.Get_rank() == 0


def check_world(group: Group) -> None:
    """Refuse a world that is not what the launcher or Slurm started.

    *group* is of all ranks of ``MPI.COMM_WORLD``.

    Raises:
        HetmpError: P lonely worlds of one rank each, or a part of a heterogeneous job only.
    """
    started, tasks = launched(), component_tasks()
    if started is not None and started[1] > 1 and group.size == 1:
        raise HetmpError(
            f"the launcher started {started[1]} processes, but MPI sees {started[1]} separate "
            f"worlds of 1 rank: it does not fit this MPI library ({mpi_library()}). With srun "
            "use --mpi=pmix for Open MPI or --mpi=pmi2 for MPICH (hetmp doctor --srun-mpi says "
            "which); with mpirun use the one that belongs to the library (.venv/bin/mpirun in a "
            "checkout)"
        )
    if started is not None and started[1] != group.size:
        raise HetmpError(
            f"the launcher started {started[1]} processes, MPI sees {group.size} ranks: start "
            "all of them with one srun or one mpirun"
        )
    if tasks and group.size < sum(tasks):
        raise HetmpError(
            f"this heterogeneous job has {sum(tasks)} tasks in {len(tasks)} components, MPI sees "
            f"{group.size}: mpirun, and srun without --het-group, start the first component only. "
            f"Use srun --het-group=0-{len(tasks) - 1}"
        )
