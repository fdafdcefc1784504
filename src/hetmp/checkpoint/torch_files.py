"""Checkpoints to and from the files of ``torch.save``. No MPI."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
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
from hetmp.core.state_names import held_state, without_wrappers
from hetmp.core.suggestions import near_path

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


@dataclass(frozen=True)
class Imported:
    """What became of a state_dict.

    Attributes:
        count: tensors in the checkpoint.
        prefix: what was taken off their names; empty if nothing was.
        left_out: names of tensors that are not in the checkpoint.
    """

    count: int
    prefix: str
    left_out: tuple[str, ...]


def import_state(
    source: str | Path,
    checkpoint: str | Path,
    *,
    strip_prefix: str | None = None,
    keep_prefix: bool = False,
) -> Imported:
    """Make a checkpoint from a state_dict.

    What known wrappers put before all names (``module.``, ``_orig_mod.``, ``model.``) is taken
    off.

    Args:
        source: file of ``torch.save``.
        checkpoint: is written.
        strip_prefix: take the tensors whose names begin with it, without it, and no others.
        keep_prefix: take the names as they are.

    Raises:
        HetmpError: a source that is missing, no state_dict, or holds more than plain values; a
            prefix that no name has.
    """
    whole = _state_dict(_loaded(Path(source)), Path(source))
    prefix, names = _names(list(whole), strip_prefix, keep_prefix)
    state = {own: whole[name] for name, own in names.items()}
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
    left_out = tuple(name for name in whole if name not in names)
    return Imported(len(state), prefix, left_out)


def _names(names: list[str], strip_prefix: str | None, keep: bool) -> tuple[str, dict[str, str]]:
    """Return what is taken off, and the names that are taken -> those without it."""
    if keep and strip_prefix is not None:
        raise HetmpError("one prefix cannot be taken off and kept: give one of the two options")
    if keep:
        return "", {name: name for name in names}
    if strip_prefix is None:
        return without_wrappers(names)
    prefix = strip_prefix.rstrip(".") + "."
    taken = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if not taken:
        firsts = ", ".join(sorted({f"{name.partition('.')[0]}." for name in names})[:8])
        raise HetmpError(f"no name begins with {prefix!r}; names begin with {firsts}")
    return prefix, taken


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
    loaded = held_state(loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise HetmpError(f"{source} contains no state_dict: save model.state_dict()")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise HetmpError(
                f"{source} contains no state_dict: {name!r} is a {type(value).__name__}, not a "
                "tensor"
            )
    return dict(loaded)
