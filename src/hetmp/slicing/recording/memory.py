"""The memory of a run on every rank: the ``memory`` record of the metrics."""

import contextlib
import ctypes
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmp.core.state import Sliced
from hetmp.slicing.model import SlicedModel


def resident() -> int:
    """Return the bytes of memory of this process now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


class PeakMeter:
    """The most memory that this process has between two moments.

    Of a GPU's allocator, else of resident memory, as Linux keeps it; elsewhere it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0

    def begin(self) -> None:
        """Forget earlier peaks; memory that nobody uses is given back first."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again: proc(5)
            self._before = _status("VmRSS")
        except OSError:
            self._before = 0

    def growth(self) -> int | None:
        """Return the bytes of the peak above what was held at the beginning; None if unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        most = _status("VmHWM")
        return most - self._before if most and self._before else None


def _status(field: str) -> int:
    """Return a field of this process's status in bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def peak(device: torch.device) -> int:
    """Return the most bytes that this process had: of a GPU's allocator, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # there bytes, elsewhere KiB


def memory_held(
    model: SlicedModel,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    activations: int,
    before: int,
) -> dict[str, Any]:
    """Return each rank's memory, beside what one process would need. Collective.

    Args:
        model: the sliced model.
        optimizer: whose state is counted.
        device: of this rank.
        activations: bytes that this rank kept for the backward pass of a step.
        before: bytes of resident memory before the model was made.

    Returns:
        Bytes in lists with a number per rank, the same on every rank: see docs/formats.md.
    """
    runtime = model.hetmp
    kinds = "parameters", "gradients", "optimizer"
    names, held = [], []
    for name, parameter in model.named_parameters():
        names.append(name)
        state = optimizer.state.get(parameter, {})
        gradient = 0 if parameter.grad is None else _bytes(parameter.grad)
        held.append((_bytes(parameter), gradient, _state_bytes(state)))
    table = np.array(held, dtype=np.int64).reshape(len(names), len(kinds))
    by_rank = runtime.group.allgather(table)  # (ranks, parameters, kinds)
    cut = np.array([isinstance(runtime.table[name].state, Sliced) for name in names], dtype=bool)
    whole = by_rank[:, cut].sum(axis=(0, 1)) + by_rank[:, ~cut].max(axis=0, initial=0).sum(axis=0)
    own = np.array([activations, peak(device), before if device.type == "cpu" else 0])
    others = runtime.group.allgather(own)
    counts = runtime.plan.held
    return {
        **{kind: by_rank[:, :, i].sum(axis=1).tolist() for i, kind in enumerate(kinds)},
        "activations": others[:, 0].tolist(),
        "peak": others[:, 1].tolist(),
        "before": others[:, 2].tolist(),
        "whole": {kind: int(whole[i]) for i, kind in enumerate(kinds)},
        "share": [round(count / max(1, sum(counts)), 6) for count in counts],
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _state_bytes(state: Mapping[str, Any]) -> int:
    return sum(_bytes(value) for value in state.values() if isinstance(value, Tensor))
