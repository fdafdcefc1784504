"""torch's GradScaler for slices: all ranks skip a step, or none."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hetmp.cluster import AgreedError
from hetmp.core.errors import HetmpError
from hetmp.exchange import plain_tensors
from hetmp.optim.sliced_model import runtime_of
from hetmp.slicing.step_shares import whole_of_steps


class GradScaler(torch.amp.GradScaler):
    """``torch.amp.GradScaler`` that agrees over the ranks on gradients that are not finite.

    Overflow shows in the slice of one rank. With torch's own, that rank alone would skip the step
    and halve its scale, and the ranks' slices would no longer be of one network. Use it as
    torch's. Making it, ``unscale_`` and ``step`` are collective; the scale is the same on all
    ranks. It is disabled with torch's warning where *device* is cuda and there is none.

    Args:
        model: made by ``slice_model``.
        device: the type of the device that this rank computes on, ``cuda`` or ``cpu``.
        init_scale, growth_factor, backoff_factor, growth_interval, enabled: as torch's.

    Raises:
        HetmpError: a model that is not sliced, or, on every rank, an option that torch refuses
            or that differs between the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._group = runtime_of(model, "GradScaler").group
        options = (init_scale, growth_factor, backoff_factor, float(growth_interval))
        with self._group.together():
            try:
                super().__init__(
                    device, init_scale, growth_factor, backoff_factor, growth_interval, enabled
                )
            except AssertionError as error:
                raise HetmpError(f"GradScaler: {error}") from error
        gathered = self._group.allgather(np.array([*options, float(self.is_enabled())]))
        names = ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled")
        for name, values in zip(names, gathered.T.tolist(), strict=True):
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise AgreedError(
                    f"GradScaler: {name} is {values[0]:g} on rank 0 and {values[other]:g} on rank "
                    f"{other}: give all ranks the same, and each the device type it computes on"
                )

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        """Unscale this rank's gradients; return whether any rank's had overflowed. Collective.

        This is where torch looks for overflow, both before a step and for the optimizers that
        unscale for themselves (``fused=True``).
        """
        wholes: Any = _Wholes(optimizer)  # torch reads the groups' parameters, and no more
        with self._group.together(), plain_tensors():
            flags = super()._unscale_grads_(wholes, inv_scale, found_inf, allow_fp16)
        # A rank without gradients has looked at nothing, which torch takes for a mistake.
        flags.setdefault(found_inf.device, found_inf.clone())
        mine = max(float(flag) for flag in flags.values())
        anywhere = float(self._group.allgather(np.array([mine])).max())
        for flag in flags.values():
            flag.fill_(anywhere)
        return flags


class _Wholes:
    """The whole parameters of an optimizer, some of which it steps a share of."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = [
            {"params": [whole_of_steps(parameter) for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]
