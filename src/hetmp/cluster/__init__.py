"""The ranks of a job.

The only package that imports ``mpi4py.MPI``, and only when a group is first made, so that
commands for login nodes never start MPI.
"""

from hetmp.cluster.clocks import ClockOffset, clock_offset
from hetmp.cluster.fake_groups import LoneGroup, RehearsalGroup
from hetmp.cluster.group import AgreedError, AgreedFailure, Group
from hetmp.cluster.hosts import arranged, hosts, local_sharing, side_by_side
from hetmp.cluster.launch import check_world, launched, speaks_first
from hetmp.cluster.mpi import mpi_library, mpi_started, mpi_vendor, thread_level
from hetmp.cluster.shared_memory import SharedMemory

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
