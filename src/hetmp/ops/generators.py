"""The random generators that a module may draw from: torch's, NumPy's and Python's."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def generator_states(gpus: Sequence[torch.device] = (), *, pythons: bool = True) -> list[object]:
    """Return the states of torch's generators, of the CPU and *gpus*.

    With *pythons*, NumPy's and Python's are among them.
    """
    states: list[object] = [torch.get_rng_state().numpy().tobytes()]
    states += [torch.cuda.get_rng_state(gpu).numpy().tobytes() for gpu in gpus]
    if pythons:
        _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's choice
        states += [random.getstate(), list(keys), position]
    return states


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore all generators on leaving the context."""
    with torch.random.fork_rng(), pythons_kept():
        yield


@contextmanager
def pythons_kept() -> Iterator[None]:
    """Restore NumPy's and Python's generators on leaving the context."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's choice
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002


def seed_pythons(seed: int) -> None:
    """Seed NumPy's and Python's generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the user's choice
