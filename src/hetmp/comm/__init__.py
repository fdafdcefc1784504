"""The ranks of a job.

The only package that imports ``mpi4py.MPI``, and only when a group is first made, so that
commands for login nodes never start MPI.
"""

from hetmp.comm.clocks import ClockOffset, clock_offset
from hetmp.comm.group import AgreedError, AgreedFailure, Group
from hetmp.comm.hosts import arranged, hosts, local_sharing, side_by_side
from hetmp.comm.launch import check_world, launched, speaks_first
from hetmp.comm.library import mpi_library, mpi_started, mpi_vendor, thread_level
from hetmp.comm.shared_memory import SharedMemory
from hetmp.comm.stand_ins import LoneGroup, RehearsalGroup

__all__ = [
    "AgreedError",
    "AgreedFailure",
    "ClockOffset",
    "Group",
    "LoneGroup",
    "RehearsalGroup",
    "SharedMemory",
    "arranged",
    "check_world",
    "clock_offset",
    "hosts",
    "launched",
    "local_sharing",
    "mpi_library",
    "mpi_started",
    "mpi_vendor",
    "side_by_side",
    "speaks_first",
    "thread_level",
]
