"""Work that ranks of one host do one after another where they have no room to do it at once."""

from collections.abc import Callable

import numpy as np
import torch

from hetmp.cluster.group import Group
from hetmp.cluster.hosts import hosts
from hetmp.cluster.machine import free_memory

ROOM = 0.5
"""Part of a host's free memory that work of several ranks at once may take."""


def in_turns(group: Group, work: Callable[[], int]) -> bool:
    """Call *work* on the first rank of each host, then on the others. Collective.

    The others of a host follow together where its memory has room for all, else one after
    another.

    Args:
        work: returns the bytes that it took at its height; what it took more than it keeps must
            be free again then.

    Returns:
        Whether ranks of any host went one after another; the same on every rank.

    Raises:
        AgreedError: *work* raised on some rank; every rank has tried then.
    """
    first_on_host = hosts(group)
    first = first_on_host[group.rank]
    place = first_on_host[: group.rank].count(first)
    needed, error = 0, None
    short = False
    if place == 0:
        needed, error = _tried(work)
        # Unknown free memory counts as enough.
        free = free_memory(torch.device("cpu"))
        short = 0 < ROOM * free < needed * (first_on_host.count(first) - 1)
    shorts = group.allgather(np.array([short], dtype=np.int8)).ravel().tolist()
    turn = place if shorts[first] else min(place, 1)
    turns = max(
        first_on_host.count(host) - 1 if shorts[host] else min(first_on_host.count(host) - 1, 1)
        for host in set(first_on_host)
    )
    for number in range(1, turns + 1):
        if turn == number:
            _, error = _tried(work)
        if number < turns:
            group.meet()
    with group.together():
        if error is not None:
            raise error
    return any(shorts)


def _tried(work: Callable[[], int]) -> tuple[int, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return 0, error
