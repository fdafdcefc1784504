"""In which precision each rank computes, and in which they tell each other."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hetmp.cluster import AgreedError, Group
from hetmp.core.suggestions import unknown_name
from hetmp.core.text import count_ranks
from hetmp.run.config import AUTOCASTS, TrainConfig


def autocast_of(told: Sequence[str] | None, group: Group) -> torch.dtype | None:
    """What this rank's convolutions are computed in, where it is not the weights' dtype.

    Args:
        told: one of ``AUTOCASTS``, or one for each rank; None for none.

    Raises:
        AgreedError: an unknown name, or a list for another number of ranks.
    """
    if told is None:
        return None
    for name in told:
        if name not in AUTOCASTS:
            raise AgreedError(str(unknown_name("autocast", name, AUTOCASTS)))
    if len(told) not in (1, group.size):
        raise AgreedError(
            f"autocast has {len(told)} entries for {count_ranks(group.size)}: give one for all, "
            "or one for each"
        )
    own = told[group.rank if len(told) > 1 else 0]
    return None if own == "none" else getattr(torch, own)


def wire_of(config: TrainConfig) -> str | None:
    """What ranks that compute in unlike dtypes exchange: the weights' dtype, which holds all."""
    return config.dtype if len(set(config.autocast or ())) > 1 else None


def casting(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to *dtype*, if there is one."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def wide(output: Tensor) -> Tensor:
    """Scores of 16 bits as float32, in which a loss is computed."""
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
