"""Which ranks share a host, and what the ranks of a host share."""

import zlib

import numpy as np

from hetmp.comm.group import Group
from hetmp.comm.library import mpi


def local_sharing(group: Group, what: str) -> tuple[int, int]:
    """(number, count) of this rank among the ranks on this host that name the same *what*.

    Collective. For ranks that share devices or cores: *what* names the set they were given.
    """
    local = group.control.Split_type(mpi().COMM_TYPE_SHARED)
    marks = np.empty(local.Get_size(), dtype=np.int64)
    local.Allgather(np.array([zlib.crc32(what.encode())], dtype=np.int64), marks)
    same = marks == marks[local.Get_rank()]
    number = int(same[: local.Get_rank()].sum())
    local.Free()
    return number, int(same.sum())
