"""``profile_model``: all ranks measure their devices at the same time, then the links."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from hetmp.cluster import Group, hosts, local_sharing, mpi_library
from hetmp.cluster.device import gpu_identity
from hetmp.cluster.machine import device_name, free_memory
from hetmp.planner.profiling.links import exchanged_shapes, measure_links
from hetmp.planner.profiling.measure import Budget, ShareMeter, batch_of_example
from hetmp.planner.profiling.profile import DeviceProfile, LinkTimes, Profile, title_of
from hetmp.slicing import Tuning
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.scheduler import schedule_model


def profile_model(
    module: nn.Module,
    example_input: Any,
    group: Group,
    *,
    name: str = "",
    device: torch.device | str = "cpu",
    budget: Budget | None = None,
    tuning: Tuning | None = None,
    slowdown: float = 1.0,
    notify: Callable[[str], None] = lambda text: None,
) -> Profile:
    """Measure the times of *module*'s operations on every rank, and of the links. Collective.

    Args:
        module: the module as it will be sliced, also on the meta device: values are not used.
        example_input: a tensor of the batch's shape and dtype, also on the meta device, or a
            tuple or dict of arguments.
        group: the ranks to measure, and the links between them.
        name: name of the model, for the reader.
        device: device of this rank.
        budget: limits of the measurement.
        tuning: the tuning with which the model will run.
        slowdown: factor of this rank, see ``cluster/slowdown.py``.
        notify: called on every rank with a text on each stage.

    Returns:
        The same profile on every rank.

    Raises:
        HetmpError: on every rank, for a model that cannot be sliced.
    """
    budget, tuning, device = budget or Budget(), tuning or Tuning(), torch.device(device)
    memory = free_for_rank(group, device)
    with group.together():
        graph = read_graph(module, example_input)
        meter = ShareMeter(graph, example_input, device, tuning, memory, slowdown)
        batch_size, dtype = batch_of_example(example_input)
    notify("measuring the devices")
    with group.together():
        meter.run(budget)
    # Ranks of a host share its memory and caches: none is measured beside idle ones.
    done = group.all_done()
    # MPI gets on with it only when asked, and a step of a slow rank may take a minute.
    meter.group.slowdown.enough = done.Test
    while not done.Test():
        meter.again()
    own = DeviceProfile(
        host=platform.node(),
        device=_computing(device),
        threads=_threads(device),
        slowdown=slowdown,
        versions={"torch": version("torch"), "mpi": mpi_library()},
        memory=memory,
        rest=meter.rest,
        handling=meter.handling,
        works=meter.works(),
        workspace=tuple(meter.workspace),
        on_gpu=device.type == "cuda",
    )
    notify("measuring the links")
    first_on_host, links = profile_links(graph, example_input, group, device=device, tuning=tuning)
    devices = [
        DeviceProfile.model_validate_json(t) for t in group.gather_texts(own.model_dump_json())
    ]
    created = group.broadcast_text(time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    return Profile(
        created=created,
        model=name,
        batch_size=batch_size,
        dtype=str(dtype).removeprefix("torch."),
        devices=tuple(devices),
        hosts=first_on_host,
        links=links,
    )


def profile_links(
    graph: ModelGraph,
    example_input: Any,
    group: Group,
    *,
    device: torch.device,
    tuning: Tuning,
) -> tuple[tuple[int, ...], tuple[LinkTimes, ...]]:
    """Measure the times of a model's exchanges between the ranks, and some of them. Collective.

    Takes seconds.

    Args:
        graph: the model.
        example_input, group, device, tuning: as for ``profile_model``.

    Returns:
        For each rank the first rank on the same host, and the times, none for one rank; the same
        on every rank.

    Raises:
        HetmpError: on every rank, for an example without a batch.
    """
    with group.together():
        batch_size, dtype = batch_of_example(example_input)
        schedule = schedule_model(graph, plan_from_weights(graph, [1.0] * group.size))
        shapes = exchanged_shapes(schedule.training, batch_size)
    first_on_host = hosts(group)
    return first_on_host, measure_links(group, first_on_host, shapes, dtype, device, tuning)


def free_for_rank(group: Group, device: torch.device) -> int:
    """Return the bytes that are free for this rank now; 0 if unknown. Collective.

    Free memory of a host, or of a GPU, is divided equally among the ranks that compute there.
    """
    with group.together():
        free = free_memory(device)
    where = gpu_identity(device.index or 0) if device.type == "cuda" else str(device)
    _, sharing = local_sharing(group, where)
    return free // sharing


def device_title(device: torch.device, slowdown: float = 1.0) -> str:
    """Return the title of this rank's device in a profile."""
    return title_of(_computing(device), _threads(device), slowdown)


def _computing(device: torch.device) -> str:
    """Return the device's name with the precision of the computation, since speed depends on it."""
    name = device_name(device)
    if not torch.is_autocast_enabled(device.type):
        return name
    dtype = torch.get_autocast_dtype(device.type)
    return f"{name} in {str(dtype).removeprefix('torch.')}"


def _threads(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1
