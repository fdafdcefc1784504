"""Checkpoints to and from the files of ``torch.save``. No MPI."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetmp.checkpoint.catalog import opened
from hetmp.checkpoint.format import BUFFERS, MODEL, escaped, unescaped
from hetmp.checkpoint.items import Item, as_stored, dtype_name, from_stored
from hetmp.checkpoint.save_load import about_this_process
from hetmp.checkpoint.write import Contents, write_alone
from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.core.suggestions import near_path

NESTED = "state_dict", "model_state_dict", "model"
"""Names under which training scripts keep a state_dict beside other things."""

RUNNING = "running_mean", "running_var", "num_batches_tracked"
"""Buffers by their usual names: a state_dict does not tell them from parameters."""


def export_state(checkpoint: str | Path, target: str | Path) -> int:
    """Write ``/model`` and ``/buffers`` as a state_dict; return the number of tensors.

    Raises:
        HetmpError: a checkpoint that is damaged, or a target that cannot be written.
    """
    state: dict[str, Tensor] = {}
    with opened(Path(checkpoint)) as catalog:
        for group in (MODEL, BUFFERS):
            known: dict[int, Tensor] = {}  # two names of one tensor stay one
            for name, stored in catalog.under(group).items():
                if stored.number not in known:
                    catalog.verify(stored)
                    known[stored.number] = from_stored(catalog.read(stored), stored.dtype)
                state[unescaped(name)] = known[stored.number]
    if not state:
        raise HetmpError(f"{checkpoint} contains no network")
    try:
        with replacing(Path(target)) as beside:
            torch.save(state, beside)
    except (OSError, RuntimeError) as error:  # torch's own, where there is no such folder
        raise HetmpError(f"{target} could not be written: {error}") from None
    return len(state)


def import_state(source: str | Path, checkpoint: str | Path) -> int:
    """Make a checkpoint from a state_dict; return the number of tensors.

    Raises:
        HetmpError: a source that is missing, no state_dict, or holds more than plain values.
    """
    state = _state_dict(_loaded(Path(source)), Path(source))
    items = []
    links: dict[str, str] = {}
    known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        folder = BUFFERS if name.rpartition(".")[2] in RUNNING else MODEL
        path = f"{folder}/{escaped(name)}"
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
        if tensor.numel() and key in known:
            links[path] = known[key]
            continue
        known[key] = path
        items.append(
            Item(path, tuple(tensor.shape), dtype_name(tensor.dtype), None, as_stored(tensor))
        )
    write_alone(Path(checkpoint), Contents(items, links, about_this_process()))
    return len(state)


def _loaded(source: Path) -> Any:
    if not source.exists():
        raise HetmpError(f"there is no file {source}{near_path(source)}")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise HetmpError(
            f"{source} holds more than tensors and plain values, and reading the rest could run "
            "code: save model.state_dict() alone"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise HetmpError(f"{source} is not a file written by torch.save: {line}") from None


def _state_dict(loaded: Any, source: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        for name in NESTED:
            if isinstance(loaded.get(name), Mapping):
                loaded = loaded[name]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise HetmpError(f"{source} contains no state_dict: save model.state_dict()")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise HetmpError(
                f"{source} contains no state_dict: {name!r} is a {type(value).__name__}, not a "
                "tensor"
            )
    return dict(loaded)
