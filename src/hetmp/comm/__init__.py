"""The ranks of a job.

The only package that imports ``mpi4py.MPI``, and only when a group is first made, so that
commands for login nodes never start MPI.
"""

from hetmp.comm.group import AgreedError, Group
from hetmp.comm.hosts import local_sharing
from hetmp.comm.launch import check_world, launched, speaks_first
from hetmp.comm.library import mpi_library
from hetmp.comm.shared_memory import SharedMemory
from hetmp.comm.stand_ins import LoneGroup, RehearsalGroup

__all__ = [
    "AgreedError",
    "Group",
    "LoneGroup",
    "RehearsalGroup",
    "SharedMemory",
    "check_world",
    "launched",
    "local_sharing",
    "mpi_library",
    "speaks_first",
]
