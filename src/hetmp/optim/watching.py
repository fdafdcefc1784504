"""Refuses, in a user's own loop, an optimizer that is silently wrong on slices."""

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hetmp.comm import AgreedError
from hetmp.optim.refused import REFUSED
from hetmp.optim.trust import LayerwiseOptimizer
from hetmp.slicing import sliced_parameters


def reason_against(kind: type) -> str | None:
    """Why an optimizer of class *kind* is wrong on slices, by its name or one it derives from."""
    if issubclass(kind, LayerwiseOptimizer):
        return None
    return next((REFUSED[c.__name__] for c in kind.__mro__ if c.__name__ in REFUSED), None)


def refuse(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """torch calls it before every step of every optimizer in the process.

    Where the name of the class says nothing against it, it costs a look at a few names.

    Raises:
        HetmpError: on every rank, before anything is changed, where the optimizer has a parameter
            that is cut over several ranks. All ranks run the same loop, so all raise.
    """
    reason = reason_against(type(optimizer))
    if reason is None:
        return
    cut = sliced_parameters()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in cut:
                raise AgreedError(
                    f"{type(optimizer).__name__} is wrong on the slices of {cut[id(parameter)]!r}: "
                    f"{reason}"
                )


register_optimizer_step_pre_hook(refuse)
