"""How long does hetmp plan search for a large network on many ranks?

Problem: a plan is chosen anew at the start of a job, so the search must not take longer than the
job's start. Here it plans a chain of convolutions (batch norm and ReLU behind each), of --widths
different widths, for ranks of three kinds (100 : 30 : 1) whose times are made up: the time of the
search does not depend on what they are.

Cost: one process, no MPI; 1,000 layers on 1,024 ranks take less than a minute.

    python benchmarks/search.py --layers 1000 --ranks 1024
"""

import argparse
import time

import torch
from torch import nn

from hetmp.planner import make_plan
from hetmp.planner.cluster_file import links_of
from hetmp.planner.profiling import (
    OPTIMIZER,
    THOUSANDTHS,
    DeviceProfile,
    Profile,
    WorkTimes,
    step_work,
)
from hetmp.planner.reasons import reasons
from hetmp.slicing.channel_groups import plan_from_weights
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.schedule import CallStep
from hetmp.slicing.scheduler import schedule_model

IMAGES = 32
"""Of a step."""

KINDS = {"new": 100.0, "old": 30.0, "cpu": 1.0}


def chain(layers: int, widths: int) -> nn.Module:
    """Convolutions of *widths* widths in turn, with what usually lies between them."""
    sizes = [64 * (1 + i * 8 // widths) + 8 * (i % 8) for i in range(widths)]
    steps: list[nn.Module] = []
    before = 3
    for number in range(layers):
        width = sizes[number % widths]
        steps += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*steps)


def device(name: str, speed: float, graph: ModelGraph) -> DeviceProfile:
    """Made-up times: a line with a first step, the same for every layer."""
    works = {}
    plans = (plan_from_weights(graph, [1, 1], schemes) for schemes in ("filters", "batch"))
    steps = (step for plan in plans for step in schedule_model(graph, plan).training.steps)
    for step in steps:
        if not isinstance(step, CallStep):
            continue
        work, kind, state = step_work(step, IMAGES)
        length = state.layout.total if state is not None else 1
        base = (0.05 if step.node.rule.mixes else 0.001) / speed
        for one in ("filters", "inputs") if kind == "filters" else (kind,):
            layer = step.node.call.layer
            total = length if one != "inputs" else step.node.rule.input_channels(layer) or 1
            counts = tuple(sorted({max(1, total // 8), max(1, total // 2), total}))
            line = tuple(base * count / total + 1e-5 for count in counts)
            works[work, one] = WorkTimes(
                work=work,
                kind=one,
                total=total,
                counts=counts,
                forward=line,
                backward=line,
                parameters=line if one == "filters" else (0.0,) * len(counts),
                saved=tuple(1e6 * count / total for count in counts),
            )
    works[OPTIMIZER, "channelwise"] = WorkTimes(
        work=OPTIMIZER,
        kind="channelwise",
        total=THOUSANDTHS,
        counts=(10, 1000),
        forward=(1e-4, 1e-2),
        backward=(0.0, 0.0),
        parameters=(0.0, 0.0),
        saved=(0.0, 0.0),
    )
    return DeviceProfile(
        host=name, device=name, threads=1, memory=0, rest=1e-3, works=tuple(works.values())
    )


def main() -> None:
    """Read, plan, tell the time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--widths", type=int, default=40)
    args = parser.parse_args()
    with torch.device("meta"):
        module = chain(args.layers, args.widths)
    began = time.perf_counter()
    graph = read_graph(module, torch.empty(IMAGES, 3, 32, 32, device="meta"))
    read = time.perf_counter() - began
    kinds = [device(name, speed, graph) for name, speed in KINDS.items()]
    profile = Profile(
        created="",
        model="",
        batch_size=IMAGES,
        dtype="float32",
        devices=tuple(kinds[rank * len(kinds) // args.ranks] for rank in range(args.ranks)),
        links=links_of(2e-6, 2e10, args.ranks),
    )
    began = time.perf_counter()
    planned = make_plan(graph, profile)
    searched = time.perf_counter() - began
    began = time.perf_counter()
    why = reasons(planned)
    explained = time.perf_counter() - began
    schemes = {layer.scheme for layer in planned.plan.layers}
    print(
        f"{args.layers} layers of {args.widths} widths, {args.ranks} ranks: read in {read:.1f} s, "
        f"planned in {searched:.1f} s, {len(why)} reasons given in {explained:.1f} s"
    )
    print(
        f"a step: {planned.prediction.seconds:.2f} s, {len(planned.left_out)} ranks left out, "
        f"schemes {', '.join(sorted(schemes))}"
    )
    for name, seconds in planned.alternatives.items():
        print(f"  {name}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
