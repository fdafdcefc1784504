"""The precision in which each rank computes, and in which ranks exchange values."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hetmp.cluster import AgreedError, Group
from hetmp.core.suggestions import unknown_name
from hetmp.core.text import count_ranks
from hetmp.run.config import AUTOCASTS, TrainConfig


def autocast_of(names: Sequence[str] | None, group: Group) -> torch.dtype | None:
    """Return the dtype of this rank's convolutions; None for that of the weights.

    Args:
        names: one of ``AUTOCASTS``, or one for each rank; None for none.

    Raises:
        AgreedError: an unknown name, or a list for another number of ranks.
    """
    if names is None:
        return None
    for name in names:
        if name not in AUTOCASTS:
            raise AgreedError(str(unknown_name("autocast", name, AUTOCASTS)))
    if len(names) not in (1, group.size):
        raise AgreedError(
            f"autocast has {len(names)} entries for {count_ranks(group.size)}: give one for all, "
            "or one for each"
        )
    own = names[group.rank if len(names) > 1 else 0]
    return None if own == "none" else getattr(torch, own)


def wire_of(config: TrainConfig) -> str | None:
    """Return the dtype to exchange in if ranks compute in different dtypes, else None."""
    return config.dtype if len(set(config.autocast or ())) > 1 else None


def casting(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that autocasts to *dtype*, or does nothing if it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def wide(output: Tensor) -> Tensor:
    """Convert 16-bit scores to float32, in which the loss is computed."""
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
