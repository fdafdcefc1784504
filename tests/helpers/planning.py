"""Made-up devices: profiles whose times follow a formula instead of a measurement."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from hetmp import models
from hetmp.planner.cluster_file import links_of
from hetmp.planner.profiling import (
    OPTIMIZER,
    THOUSANDTHS,
    DeviceProfile,
    Profile,
    WorkTimes,
    step_work,
)
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.schedule import CallStep
from hetmp.slicing.scheduler import schedule_model

BATCH = 8

SHARES = (0, 1 / 16, 1 / 4, 1 / 2, 1)

Costs = Callable[[CallStep, str, float], tuple[float, float, float, float]]
"""(step, kind, share) -> seconds forward, backward and of parameters, bytes saved."""


def read_model(name: str, shape: tuple[int, ...] = (), classes: int = 0) -> ModelGraph:
    """A shipped model, on the meta device."""
    published, count = models.published(name)
    shape = shape or published
    with torch.device("meta"):
        module = models.build(name, shape, classes or count)
    return read_graph(module, torch.empty((BATCH, *shape), device="meta"))


def read_layers(*layers: nn.Module, image: tuple[int, ...]) -> ModelGraph:
    """A chain of layers."""
    return read_graph(nn.Sequential(*layers), torch.empty((BATCH, *image), device="meta"))


def formula(inputs: float = 1.0) -> Costs:
    """Multiplications at 1e9 a second, elements at 1e8; *inputs*: what that scheme costs more."""

    def cost(step: CallStep, kind: str, share: float) -> tuple[float, float, float, float]:
        given = math.prod(_sizes(step.node.call.result)[1:])
        seconds, saved = 1e-8 * BATCH * given, 4.0 * BATCH * given * share
        if step.node.rule.mixes:
            weight = step.run.layer.weight
            seconds = 1e-9 * BATCH * weight.numel() * given / max(1, weight.shape[0])
        seconds *= share
        if kind == "inputs":
            return inputs * seconds, 2 * inputs * seconds, 0.0, saved
        return seconds, seconds, seconds if step.node.rule.mixes else 0.0, saved

    return cost


def _sizes(value) -> tuple[int, ...]:
    return value.sizes[0] if value.is_tensor else _sizes(value.items[0])


def made_up_works(graph: ModelGraph, costs: Costs, speed: float = 1.0) -> tuple[WorkTimes, ...]:
    """What a device of a speed takes for all that two ranks run, as when devices are measured."""
    plain = plan_from_weights(graph, (1, 1))
    mixed = plain
    for node in graph.mixing():
        can = "inputs" in node.rule.schemes(node.call.layer) and not graph.is_tied(node)
        if can and node.rule.input_channels(node.call.layer) is not None:
            mixed = mixed.with_layer(node.path, scheme="inputs")
    by_batch = plan_from_weights(graph, (1, 1), "batch")
    works: dict[tuple[str, str], WorkTimes] = {}
    for plan in (plain, mixed, by_batch):
        for step in schedule_model(graph, plan).training.steps:
            if not isinstance(step, CallStep):
                continue
            work, kind, state = step_work(step, BATCH)
            total = 1 if state is None else state.layout.total
            if (work, kind) in works and works[work, kind].total >= total:
                continue
            counts = sorted({math.ceil(share * total) for share in SHARES}) if state else [1]
            rows = [costs(step, kind, count / total) for count in counts]
            works[work, kind] = WorkTimes(
                work=work,
                kind=kind,
                total=total,
                counts=tuple(counts),
                forward=tuple(row[0] / speed for row in rows),
                backward=tuple(row[1] / speed for row in rows),
                parameters=tuple(row[2] / speed for row in rows),
                saved=tuple(row[3] for row in rows),
            )
    return (*works.values(), optimizer_work())


def optimizer_work(seconds: float = 0.0) -> WorkTimes:
    """The optimizer's step, as long for few parameters as for all."""
    return WorkTimes(
        work=OPTIMIZER,
        kind="channelwise",
        total=THOUSANDTHS,
        counts=(1, THOUSANDTHS),
        forward=(seconds, seconds),
        backward=(0, 0),
        parameters=(0, 0),
        saved=(0, 0),
    )


def device(works: Sequence[WorkTimes], **fields) -> DeviceProfile:
    """A device of a kind that nobody sells."""
    told = {"host": "here", "device": "abacus", "threads": 1, "memory": 0, "rest": 0.0}
    return DeviceProfile(**(told | fields), works=tuple(works))


def made_up_profile(
    graph: ModelGraph,
    speeds: Sequence[float],
    *,
    costs: Costs | None = None,
    latency: float = 1e-6,
    bandwidth: float = 1e10,
    memory: Sequence[int] | None = None,
    **fields,
) -> Profile:
    """Ranks of these speeds; those of one speed and one memory are of one kind."""
    made: dict[tuple[float, int], DeviceProfile] = {}
    devices = []
    for speed, free in zip(speeds, memory or [0] * len(speeds), strict=True):
        if (speed, free) not in made:
            works = made_up_works(graph, costs or formula(), speed)
            made[speed, free] = device(works, device=f"abacus {speed:g}", memory=free, **fields)
        devices.append(made[speed, free])
    return Profile(
        created="2026-01-01T00:00:00+0000",
        model="made up",
        batch_size=BATCH,
        dtype="float32",
        devices=tuple(devices),
        links=links_of(latency, bandwidth, len(speeds)),
    )


def without_works(profile: Profile, kind: str) -> Profile:
    """The profile as it is where works of that kind were not measured."""
    devices = tuple(
        one.model_copy(update={"works": tuple(work for work in one.works if work.kind != kind)})
        for one in profile.devices
    )
    return profile.model_copy(update={"devices": devices})


CPU = torch.device("cpu")


def digits(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """The model and a batch of images for it, on the meta device."""
    with torch.device("meta"):
        module = models.build("digits", (1, 8, 8), 10).to(dtype)
    return module, torch.empty((16, 1, 8, 8), dtype=dtype, device="meta")


def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD
