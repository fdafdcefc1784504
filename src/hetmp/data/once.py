"""Reading on rank 0 what all ranks must know."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from hetmp.comm import Group

Found = dict[str, Any]
"""Arrays of numbers, and what JSON can hold, by name."""

MAX_BYTES = 2**30
"""The most bytes in one message."""


def read_once(group: Group | None, read: Callable[[], Found]) -> Found:
    """What *read* finds on rank 0, on every rank. Collective; without a *group*, just here.

    Raises:
        HetmpError: on every rank, what *read* raised.
    """
    if group is None:
        return read()
    found: Found = {}
    with group.together():
        if group.is_root:
            found = read()
    arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
    told = {
        "values": {name: value for name, value in found.items() if name not in arrays},
        "arrays": {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()},
    }
    told = json.loads(group.broadcast_text(json.dumps(told)))
    shared: Found = dict(told["values"])
    for name, (dtype, shape) in told["arrays"].items():
        array = np.ascontiguousarray(arrays[name]) if group.is_root else np.empty(shape, dtype)
        flat = array.reshape(-1).view(np.uint8)
        for begin in range(0, flat.size, MAX_BYTES):
            group.broadcast(flat[begin : begin + MAX_BYTES])
        shared[name] = array.reshape(shape)
    return shared
