"""A check that the ranks' shares were not drawn alike: equal seeds give every rank one start."""

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hetmp.cluster import AgreedError, Group
from hetmp.exchange import plain_tensors
from hetmp.slicing.shares.share import CutParameter

_NUMBERS = 16
"""How many numbers of a share are compared; torch draws the first 16 alike for any size."""

_ALIKE = 1e-5
"""Up to a factor, as the width of a start may follow from the size of a share."""


class SameDraws:
    """Compares the first numbers of the ranks' shares, at slicing and in the first forward pass.

    A module may repeat itself, so what was alike at slicing may be. Making it is collective.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        self._group = group
        self._trusted: dict[str, npt.NDArray[np.float64]] = {}
        self._alike: set[str] | None = set(self._alike_now(model))

    def trust(self, model: nn.Module, missing: Iterable[str] = ()) -> None:
        """Take the numbers that *model* has now for meant: they were given for whole tensors.

        Local: what one rank trusts is not compared with any other's.

        Args:
            model: the sliced model.
            missing: names of parameters that were not given, also under the names of a module
                that *model* is a part of.
        """
        if self._alike is None:
            return
        ends = tuple(f".{name}" for name in missing)
        for name, numbers in self._numbers(model).items():
            if not any(end.endswith(f".{name}") for end in ends):
                self._trusted[name] = numbers

    def check(self, model: nn.Module) -> None:
        """Refuse shares that became alike since the model was sliced. Collective, until none are.

        Raises:
            AgreedError: on every rank, naming the first such parameter.
        """
        if self._alike is None:
            return
        for name, ranks in self._alike_now(model).items():
            if name not in self._alike:
                raise AgreedError(
                    f"ranks {ranks[0]} and {ranks[1]} hold the same numbers of {name!r}, one after "
                    "the other: each drew its share by itself, from generators seeded alike; give "
                    "values with hetmp.init_(model, function), which draws for whole tensors"
                )
        self._alike = None

    def _alike_now(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """Return the parameters of which two ranks hold the same numbers, and these. Collective."""
        if self._group.size == 1:
            return {}
        numbers = self._numbers(model)
        own = np.zeros((len(numbers), _NUMBERS))
        for row, (name, direction) in zip(own, numbers.items(), strict=True):
            trusted = self._trusted.get(name)
            if trusted is None or not np.array_equal(direction, trusted):
                row[:] = direction
        everyones = self._group.allgather(own, "the first numbers of the parameters")
        pairs: dict[str, tuple[int, int]] = {}
        for at, name in enumerate(numbers):
            for a, b in itertools.combinations(range(self._group.size), 2):
                first, second = everyones[a, at], everyones[b, at]
                if np.ptp(first) > _ALIKE and np.abs(first - second).max() < _ALIKE:
                    pairs.setdefault(name, (a, b))
        return pairs

    def _numbers(self, model: nn.Module) -> dict[str, npt.NDArray[np.float64]]:
        """Return what is compared of each cut parameter on this rank."""
        with plain_tensors(), torch.no_grad():
            return {
                name: _direction(parameter)
                for name, parameter in model.named_parameters()
                if isinstance(parameter, CutParameter)
            }


def _direction(parameter: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the first numbers as a vector of length 1; zeros where that cannot be."""
    if parameter.numel() < _NUMBERS or parameter.is_complex():
        return np.zeros(_NUMBERS)
    numbers = parameter.detach().reshape(-1)[:_NUMBERS].to("cpu", torch.float64).numpy()
    size = float(np.linalg.norm(numbers))
    return numbers / size if 0 < size < np.inf else np.zeros(_NUMBERS)
