"""A check that the ranks' shares were not drawn alike: equal seeds give every rank one start."""

import itertools

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
        self._alike: set[str] | None = set(self._alike_now(model))

    def check(self, model: nn.Module) -> None:
        """Refuse shares that became alike since the model was sliced. Collective, once.

        Raises:
            AgreedError: on every rank, naming the first such parameter.
        """
        if self._alike is None:
            return
        known, self._alike = self._alike, None
        for name, ranks in self._alike_now(model).items():
            if name not in known:
                raise AgreedError(
                    f"ranks {ranks[0]} and {ranks[1]} hold the same numbers of {name!r}, one after "
                    "the other: each drew its share by itself, from generators seeded alike; give "
                    "values with hetmp.init_(model, function), which draws for whole tensors"
                )

    def _alike_now(self, model: nn.Module) -> dict[str, tuple[int, int]]:
        """Return the parameters of which two ranks hold the same numbers, and these. Collective."""
        if self._group.size == 1:
            return {}
        cut = {n: p for n, p in model.named_parameters() if isinstance(p, CutParameter)}
        own = np.zeros((len(cut), _NUMBERS))
        with plain_tensors(), torch.no_grad():
            for row, parameter in zip(own, cut.values(), strict=True):
                if parameter.numel() >= _NUMBERS and not parameter.is_complex():
                    row[:] = _direction(parameter)
        everyones = self._group.allgather(own, "the first numbers of the parameters")
        pairs: dict[str, tuple[int, int]] = {}
        for at, name in enumerate(cut):
            for a, b in itertools.combinations(range(self._group.size), 2):
                first, second = everyones[a, at], everyones[b, at]
                if np.ptp(first) > _ALIKE and np.abs(first - second).max() < _ALIKE:
                    pairs.setdefault(name, (a, b))
        return pairs


def _direction(parameter: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the first numbers as a vector of length 1; zeros where that cannot be."""
    numbers = parameter.detach().reshape(-1)[:_NUMBERS].to("cpu", torch.float64).numpy()
    size = float(np.linalg.norm(numbers))
    return numbers / size if 0 < size < np.inf else np.zeros(_NUMBERS)
