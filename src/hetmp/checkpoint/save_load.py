"""``save`` and ``load``: a sliced model, its optimizer and what a user adds, in one file."""

import json
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from hetmp.checkpoint.catalog import under
from hetmp.checkpoint.format import (
    AVERAGE,
    BUFFERS,
    EXTRA,
    FORMAT,
    MODEL,
    OPTIMIZER,
    PLAN,
    TRAINING,
    VERSION,
    escaped,
    unescaped,
)
from hetmp.checkpoint.items import Item, tensor_item
from hetmp.checkpoint.optimizer import (
    optimizer_items,
    restore_settings,
    settings,
    state_targets,
    stepped,
)
from hetmp.checkpoint.reader import (
    Seen,
    Target,
    check_targets,
    read_into,
    read_values,
    seen,
    verify,
)
from hetmp.checkpoint.values import flattened
from hetmp.checkpoint.write import Contents, WriterName, write
from hetmp.cluster import AgreedError, Group, mpi_library
from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL
from hetmp.core.state_names import unwrapped_names
from hetmp.core.version import __version__
from hetmp.slicing import SlicedModel, tensors_of
from hetmp.slicing.plan import Plan

SETTINGS, RNG = "optimizer", "rng"
"""Under ``/training``: the optimizer's options as JSON, and torch's random numbers."""


def save(
    path: str | Path,
    model: SlicedModel,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
    *,
    writer: WriterName = "auto",
) -> None:
    """Save a sliced model as whole tensors, so that any number of ranks can load it. Collective.

    The file appears under its name when it is complete, has been read again and is on the disk.

    Args:
        path: of the file; its folder is made. One that is there is replaced.
        optimizer: whose state and options are saved, with the state of torch's random numbers.
        extra: numbers, strings, arrays and dicts of these; the same on every rank, rank 0's count.
        writer: ``streamed`` (through rank 0, with any h5py), ``parallel`` (all ranks write, h5py
            built with MPI) or ``auto``: parallel where it can be.

    Raises:
        HetmpError: on every rank, if something cannot be saved; what was at *path* stays.
    """
    contents = gather(model, optimizer, {}, extra)
    write(_sliced(model).hetmp.group, Path(path), contents, writer)


def load(
    path: str | Path, model: SlicedModel, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Load what ``save`` wrote, on any number of ranks, cut in any way. Collective.

    All numbers that are used are compared with their digests before anything is changed.

    Args:
        path: of the file; rank 0 must see it, the others help reading where they can.
        optimizer: takes its state and options from the file, and torch's generator on the CPU
            is set as it was on rank 0, so that training continues as without a break.

    Returns:
        What was given as *extra*; a list of numbers comes back as an array.

    Raises:
        HetmpError: on every rank, for a file that is missing, damaged or of another model. The
            model and the optimizer are as they were.
    """
    extra: dict[str, Any] = restore(_sliced(model), Path(path), optimizer)[EXTRA]
    return extra


def gather(
    model: SlicedModel,
    optimizer: torch.optim.Optimizer | None,
    training: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
    attributes: Mapping[str, Any] | None = None,
    averages: Mapping[str, Tensor] | None = None,
) -> Contents:
    """Gather the contents of a model's checkpoint. Collective.

    Args:
        model: the sliced model.
        optimizer: its optimizer; None to leave it out.
        training: goes to ``/training``.
        extra: goes to ``/extra``.
        plan: of all ranks of the job; None: the model's.
        attributes: more attributes of ``/meta``.
        averages: goes to ``/average``: moving averages by parameter's name, cut as the
            parameter is.
    """
    runtime = _sliced(model).hetmp
    group = runtime.group
    entries = dict(training)
    with group.together():
        items = [*_tensors(model), *_averages(model, averages or {})]
        if optimizer is not None:
            entries[SETTINGS] = settings(model, optimizer)
            entries[RNG] = torch.get_rng_state().numpy()
    if optimizer is not None:
        items += optimizer_items(model, optimizer)
    with group.together():
        chosen = plan or runtime.plan
        items += _values({PLAN: chosen.model_dump_json(indent=1)})
        items += _values({TRAINING: entries, EXTRA: dict(extra or {})})
    links = {
        f"{_folder(entry.parameter)}/{escaped(entry.name)}": (
            f"{_folder(entry.parameter)}/{escaped(entry.alias_of)}"
        )
        for entry in runtime.table.values()
        if entry.persistent and entry.alias_of is not None
    }
    return Contents(items, links, {**_meta(group), **(attributes or {})})


def restore(
    model: SlicedModel,
    path: Path,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    averages: Mapping[str, Tensor] | None = None,
    verified: bool = False,
    check: Callable[[Mapping[str, Any]], None] = lambda training: None,
) -> dict[str, dict[str, Any]]:
    """Load a model and an optimizer; return ``extra`` and ``training`` as dicts. Collective.

    Args:
        model: the sliced model, filled in place.
        path: of the checkpoint.
        optimizer: the optimizer to restore; None to load the model alone.
        averages: by parameter's name, take what ``/average`` holds.
        verified: whether the numbers were compared with their digests just now.
        check: called with ``training`` before anything is changed; may raise a `HetmpError`.

    Raises:
        HetmpError: see ``load``.
    """
    group = model.hetmp.group
    if not verified:
        verify(group, path)
    with seen(group, path) as checkpoint:
        with group.together():
            _check_prefix(model, checkpoint)
            targets = [*_targets(model, checkpoint), *_average_targets(model, averages or {})]
            check_targets(checkpoint, targets)
            _check_nothing_left(model, checkpoint)
        training = read_values(group, checkpoint, TRAINING)
        extra = read_values(group, checkpoint, EXTRA)
        with group.together():
            check(training)
        state: dict[tuple[str, str], Target] = {}
        if optimizer is not None:
            with group.together():
                state = _optimizer_targets(model, checkpoint, optimizer, training)
        for target in (*targets, *state.values()):
            read_into(group, checkpoint, target)
        if model.hetmp.same_draws is not None:
            model.hetmp.same_draws.trust(model)
        if optimizer is not None:
            _adopt(model, optimizer, state)
            torch.set_rng_state(torch.from_numpy(np.array(training[RNG])))
        return {EXTRA: extra, TRAINING: training}


def _optimizer_targets(
    model: SlicedModel, checkpoint: Seen, optimizer: torch.optim.Optimizer, training: dict[str, Any]
) -> dict[tuple[str, str], Target]:
    """Restore the optimizer's options; return targets for its state, by (parameter, key)."""
    if SETTINGS not in training:
        raise HetmpError(
            "the checkpoint has no optimizer state: load without an optimizer, or save with one"
        )
    targets = {}
    below = under(checkpoint.stored, OPTIMIZER)
    parameters = stepped(model, optimizer)
    for name, key, parameter, cut, stored in state_targets(parameters, below):
        dtype = getattr(torch, stored.dtype)
        entry = model.hetmp.table[name]
        if stored.sizes == tuple(entry.shape) and stored.sizes:
            tensor = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            targets[name, key] = Target(stored.path, stored.sizes, cut, tensor)
        else:
            targets[name, key] = Target(stored.path, (), FULL, torch.empty((), dtype=dtype))
    check_targets(checkpoint, list(targets.values()))
    restore_settings(model, optimizer, training[SETTINGS])
    return targets


def _adopt(
    model: SlicedModel, optimizer: torch.optim.Optimizer, state: dict[tuple[str, str], Target]
) -> None:
    """Make the tensors that were read the optimizer's state."""
    optimizer.state.clear()
    parameters = stepped(model, optimizer)
    on_device = {
        parameter
        for group in optimizer.param_groups
        if group.get("capturable") or group.get("fused")
        for parameter in group["params"]
    }
    for (name, key), target in state.items():
        (parameter, _), value = parameters[name], target.tensor
        if parameter in on_device:  # there numbers such as ``step`` live beside the parameter
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def _targets(model: SlicedModel, checkpoint: Seen) -> Iterator[Target]:
    tensors = tensors_of(model)
    for entry in model.hetmp.table.values():
        if not entry.persistent or entry.alias_of is not None:
            continue
        path = f"{_folder(entry.parameter)}/{escaped(entry.name)}"
        if path not in checkpoint.stored and not entry.parameter:
            path = f"{MODEL}/{escaped(entry.name)}"  # a file that does not tell the two apart
        yield Target(path, tuple(entry.shape), entry.state, tensors[entry.name])


def _check_prefix(model: SlicedModel, checkpoint: Seen) -> None:
    """Refuse names that are the model's but for a prefix, with what takes it off."""
    known = [entry.name for entry in model.hetmp.table.values() if entry.persistent]
    stored = [
        unescaped(name) for group in (MODEL, BUFFERS) for name in under(checkpoint.stored, group)
    ]
    prefix, _ = unwrapped_names(stored, known)
    if prefix:
        raise HetmpError(
            f"the names in the checkpoint begin with {prefix!r}, those of the model do not: take "
            f"it off with hetmp import --strip-prefix {prefix.removesuffix('.')} (hetmp export "
            "makes a state_dict of a checkpoint)"
        )
    prefix, _ = unwrapped_names(known, stored)
    if prefix:
        raise HetmpError(
            f"the names of the model begin with {prefix!r}, those in the checkpoint do not: if "
            "hetmp import took it off, import again with --keep-prefix, else give the model "
            "that was saved"
        )


def _check_nothing_left(model: SlicedModel, checkpoint: Seen) -> None:
    """Refuse a checkpoint of a larger model that contains this one."""
    known = {escaped(entry.name) for entry in model.hetmp.table.values() if entry.persistent}
    for folder in (MODEL, BUFFERS):
        for name in under(checkpoint.stored, folder):
            if name not in known:
                raise HetmpError(
                    f"the checkpoint has /{folder}/{name}, which the model does not have: it was "
                    "saved from another model"
                )


def _tensors(model: SlicedModel) -> Iterator[Item]:
    tensors = tensors_of(model)
    for entry in model.hetmp.table.values():
        if entry.persistent and entry.alias_of is None:
            path = f"{_folder(entry.parameter)}/{escaped(entry.name)}"
            yield tensor_item(path, entry.shape, entry.state, tensors[entry.name])


def _averages(model: SlicedModel, averages: Mapping[str, Tensor]) -> Iterator[Item]:
    for name, average in averages.items():
        entry = model.hetmp.table[name]
        yield tensor_item(f"{AVERAGE}/{escaped(name)}", entry.shape, entry.state, average)


def _average_targets(model: SlicedModel, averages: Mapping[str, Tensor]) -> Iterator[Target]:
    for name, average in averages.items():
        entry = model.hetmp.table[name]
        path = f"{AVERAGE}/{escaped(name)}"
        yield Target(path, tuple(entry.shape), entry.state, average)


def _values(values: Mapping[str, Any]) -> Iterator[Item]:
    for path, array, dtype in flattened(values, ""):
        yield Item(
            path[1:], array.shape, dtype, None, np.ascontiguousarray(array).reshape(array.shape)
        )


def _folder(parameter: bool) -> str:
    return MODEL if parameter else BUFFERS


def about_this_process() -> dict[str, Any]:
    """Return the attributes of ``/meta`` that one process alone can tell."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "id": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": 1,
        "hosts": platform.node(),
        "hetmp": __version__,
        **{name: version(name) for name in ("torch", "mpi4py", "numpy", "h5py")},
        "hdf5": h5py.version.hdf5_version,
    }


def _meta(group: Group) -> dict[str, Any]:
    """Return who wrote the file, where and when; the same on every rank. Collective."""
    hosts = group.gather_texts(platform.node())
    attributes: dict[str, Any] = json.loads(group.broadcast_text(json.dumps(about_this_process())))
    return {
        **attributes,
        "ranks": group.size,
        "hosts": ",".join(dict.fromkeys(hosts)),
        "mpi": mpi_library(),
    }


def _sliced(model: Any) -> SlicedModel:
    if not isinstance(model, SlicedModel):
        raise AgreedError(
            f"the model must be made by hetmp.slice_model, got {type(model).__name__}: in a "
            "single process, slice it with weights [1]"
        )
    return model
