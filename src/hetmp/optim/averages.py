"""An exponential moving average of the parameters, slice by slice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hetmp.core.errors import HetmpError
from hetmp.exchange import plain_tensors


class Averages:
    """The average of the parameters over the steps, later ones counting more (Polyak).

    Each rank averages its own slices: no communication. As ``torch.optim.swa_utils.AveragedModel``
    with ``get_ema_multi_avg_fn(decay)``, the first ``update`` copies the parameters and every
    later one does ``average = decay · average + (1 − decay) · parameter``. Unlike there, the
    buffers (running statistics) are the model's own, as they are now. A tied parameter is
    averaged once.

    Args:
        model: made by ``slice_model``, on the device it is trained on; another module works too.
        decay: in [0, 1], such as 0.999.

    Attributes:
        tensors: name of the parameter -> its average, in its dtype and shape (this rank's
            slice); the parameters themselves within ``in_place``.
        updates: how often ``update`` was called. Restore both to go on after a restart.

    Raises:
        HetmpError: a decay out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise HetmpError(f"the decay of averages is in [0, 1], got {decay}")
        self.model, self.decay = model, decay
        with plain_tensors():
            self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.updates = 0
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the parameters; call it after each step of the optimizer.

        Raises:
            HetmpError: within ``in_place``.
        """
        self._refuse_swapped("updated")
        with plain_tensors():
            for name, parameter in self.model.named_parameters():
                average = self.tensors[name]
                numbers = parameter.is_floating_point() or parameter.is_complex()
                if self.updates == 0 or not numbers:
                    average.copy_(parameter)
                else:
                    average.lerp_(parameter.to(average.device), 1 - self.decay)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged parameters into the model within the block, to evaluate or save it.

        They are exchanged with the parameters, and back at the end, also after an exception.

        Raises:
            HetmpError: within another ``in_place``.
        """
        self._refuse_swapped("put in place")
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # By value: the optimizer, and others, hold on to the parameters' memory.
        with plain_tensors():
            for name, parameter in self.model.named_parameters():
                saved = parameter.detach().clone()
                parameter.copy_(self.tensors[name])
                self.tensors[name].copy_(saved)
        self._swapped = not self._swapped

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise HetmpError(
                f"the averages are in the model now and cannot be {what}: leave "
                "`with averages.in_place()` first"
            )
