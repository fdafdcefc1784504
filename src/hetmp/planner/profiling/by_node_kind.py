"""Profiles across jobs: devices from a library by kind of node, links measured in this job."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.planner.profiling.library import Library, Task, slowest
from hetmp.planner.profiling.measure import Budget
from hetmp.planner.profiling.profile import DeviceProfile, Profile
from hetmp.planner.profiling.profile_model import (
    device_title,
    free_for_rank,
    profile_links,
    profile_model,
)
from hetmp.slicing import Tuning
from hetmp.slicing.graph import read_graph

Key = tuple[str, str]
"""(kind of node, device)."""

SHOWN = 6
"""Most kinds of nodes to name in a message."""


def profile_by_kind(
    module: nn.Module,
    example: Tensor,
    group: Group,
    *,
    folder: Path,
    kind: str,
    name: str,
    device: torch.device,
    budget: Budget,
    tuning: Tuning,
    slowdown: float,
) -> Profile:
    """Read the ranks' devices from *folder*, or measure them if one is missing. Collective.

    If every rank's device is stored, only the links are measured. Else all devices are measured
    and the missing ones stored; stored ones keep their figures. Prints which case it is.

    Args:
        module, group, name, device, budget, tuning, slowdown: as for ``profile_model``.
        example: the ``example_input`` of ``profile_model``.
        folder: the library of profiles. Only rank 0 reads and writes there.
        kind: kind of this rank's node.

    Returns:
        The same profile on every rank. Stored devices get the memory that is free now: the least
        of the ranks with that kind and device.

    Raises:
        HetmpError: on every rank: a file cannot be used, or none can be written.
    """
    with group.together():
        graph = read_graph(module, example)
        library = Library(folder, Task.of(name, graph, example, tuning))
    own = kind, device_title(device, slowdown), free_for_rank(group, device)
    ranks = [json.loads(text) for text in group.gather_texts(json.dumps(own))]
    keys: list[Key] = [(kind, title) for kind, title, _ in ranks]
    distinct = sorted(set(keys))
    stored, missing = "", list[Key]()
    with group.together():
        if group.is_root:
            matches = {key: match for key in distinct if (match := library.find(*key))}
            missing = [key for key in distinct if key not in matches]
            for key in missing:
                library.check_writable(key[0])
            if matches:
                free = _least(zip(keys, [memory for _, _, memory in ranks], strict=True))
                stored = _joined(library.task, matches, free)
    stored = group.broadcast_text(stored)
    # One object for all ranks of a kind: the planner has one table for them.
    by_key: dict[Key, DeviceProfile] = {}
    missing = [tuple(key) for key in json.loads(group.broadcast_text(json.dumps(missing)))]
    if stored:
        profile = Profile.model_validate_json(stored)
        known = [key for key in distinct if key not in missing]
        by_key = dict(zip(known, profile.devices, strict=True))
    if stored and not missing:
        kinds = _some(sorted({kind for kind, _ in keys}))
        group.say(f"nodes of kind {kinds}: times read from {folder}, measuring only the links")
        hosts, links = profile_links(graph, example, group, device=device, tuning=tuning)
        devices = tuple(by_key[key] for key in keys)
        return profile.model_copy(update={"devices": devices, "hosts": hosts, "links": links})
    lacks = _some([_lacking(library, key) for key in missing])
    group.say(
        f"measuring the ranks, about {budget.seconds:g} s: {folder} has no times yet of nodes of "
        f"kind {lacks}"
    )
    profile = profile_model(
        module,
        example,
        group,
        name=name,
        device=device,
        budget=budget,
        tuning=tuning,
        slowdown=slowdown,
    )
    keep_kinds(library, group, [kind for kind, _ in keys], profile, only=missing)
    # What is kept was perhaps measured for longer, and every job is planned from the same.
    devices = tuple(
        by_key.get(key, measured) for key, measured in zip(keys, profile.devices, strict=True)
    )
    return profile.model_copy(update={"devices": devices})


def keep_kinds(
    library: Library,
    group: Group,
    kinds: Sequence[str],
    profile: Profile,
    only: Sequence[Key] | None = None,
) -> list[Path]:
    """Store the devices of a profile; of equal kind and title, the slowest. Collective.

    Rank 0 writes.

    Args:
        library: where the profiles are stored.
        group: the ranks of the *profile*.
        kinds: the kind of every rank's node.
        only: the keys to store, as on rank 0; all if None.

    Returns:
        The files, on rank 0.

    Raises:
        HetmpError: on every rank: a file cannot be written.
    """
    files: list[Path] = []
    with group.together():
        if group.is_root:
            alike: dict[Key, list[DeviceProfile]] = {}
            for kind, measured in zip(kinds, profile.devices, strict=True):
                alike.setdefault((kind, measured.title), []).append(measured)
            for key in sorted(alike):
                if only is None or key in only:
                    files.append(library.keep(key[0], slowest(alike[key]), profile.created))
    return files


def _least(known: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    """Return the least free memory by kind and device; 0 if unknown."""
    least: dict[Key, int] = {}
    for key, memory in known:
        least[key] = min(filter(None, (least.get(key, 0), memory)), default=0)
    return least


def _joined(task: Task, stored: Mapping[Key, DeviceProfile], free: Mapping[Key, int]) -> str:
    """Join stored devices into one profile with the memory that is free now, as JSON."""
    return Profile(
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        model=task.model,
        batch_size=task.batch_size,
        dtype=task.dtype,
        devices=tuple(
            device.model_copy(update={"memory": free[key]}) for key, device in stored.items()
        ),
    ).model_dump_json()


def _lacking(library: Library, key: Key) -> str:
    kind, title = key
    return f"{kind} ({title}{'; only of another device' if library.has_others(kind) else ''})"


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more])
