"""Is the predicted time of a step the measured one, and is the planned split the faster one?

Problem: a plan is chosen by predictions, so they are held against real steps. The ranks are
profiled; then training steps by several plans take turns (forward, backward, SGD with momentum;
one untimed step before each timed one), and each one's median is compared with its prediction:

    equal                 every rank the same share
    in proportion         shares in proportion to the ranks' measured speeds, as in the paper
    planned               what hetmp plan chooses
    planned, again        the same plan, so that the spread of equal steps is seen
    planned, filters      the same, every layer by scheme 'filters'
    planned, all ranks    the same, no rank left out
    filters               both: every layer by scheme 'filters', no rank left out
    alone                 the fastest rank alone
    without the slowest   what it chooses if the slowest rank were not there
    skewed                70 : 25 : 5 and the like, for the predictions' sake
    inputs                every other layer by scheme 'inputs', for the predictions' sake
    batch                 every layer by scheme 'batch', images in proportion to the speeds
    half by batch         the first half of the layers so, for the predictions' sake

Cost: about a minute of profiling and some seconds per plan; a plan of which not everything could be
measured within --seconds is left out. --slowdown makes ranks slower, so that
one machine can stand for several. Also printed: the ideal, which is the time of the fastest rank
alone over the sum of all speeds; and the floor that the tables give: the plan with all ranks, if
exchanges took no time. It is above the ideal because a rank's time for a layer does not go to 0
with its filters: with one filter it still reads the whole input and writes its whole gradient.

    mpirun -n 3 python benchmarks/planner.py paper-cifar --slowdown 1,2,4
    mpirun -n 2 python benchmarks/planner.py vgg11 --shape 3,32,32 --classes 10 --slowdown 1,3
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Contender, interval

import hetmp
from hetmp import models
from hetmp.cluster import AgreedError, Group
from hetmp.cluster.device import share_cores
from hetmp.planner import LinkModel, Links, PlanOptions, Prediction, Tables, make_plan, predict
from hetmp.planner.profiling import Budget, Profile, profile_model, step_work
from hetmp.slicing import make_table
from hetmp.slicing.graph import ModelGraph, read_graph
from hetmp.slicing.schedule import CallStep
from hetmp.slicing.scheduler import schedule_model


def predicted(graph: ModelGraph, profile: Profile, plan: hetmp.Plan) -> Prediction:
    """A step by a plan for all ranks of a profile, or for its members."""
    members = plan.members
    own = plan.of_members()
    schedule = schedule_model(graph, own)
    tables = Tables([profile.devices[rank] for rank in members])
    links = LinkModel(profile).between(members)
    table = make_table(graph, schedule)
    return predict(graph, schedule, table, tables, links, profile.batch_size)


def without(profile: Profile, rank: int) -> Profile:
    """A profile as if a rank were not there."""
    others = [number for number in range(len(profile.devices)) if number != rank]
    devices = tuple(profile.devices[number] for number in others)
    links = LinkModel(profile).between(others)
    sizes = sorted({size for link in profile.links for size in link.bytes})
    return profile.model_copy(
        update={
            "devices": devices,
            "hosts": (),
            "links": links.as_measured(sizes) if len(devices) > 1 else (),
        }
    )


def plans(graph: ModelGraph, profile: Profile, only: list[str]) -> dict[str, hetmp.Plan]:
    """The plans that are compared, by name."""
    ranks = len(profile.devices)
    planned = make_plan(graph, profile)
    alone = [
        predicted(
            graph, profile, hetmp.plan_from_weights(graph, [1.0]).spread([rank], ranks)
        ).seconds
        for rank in range(ranks)
    ]
    slowest = int(np.argmax(alone))
    others = [rank for rank in range(ranks) if rank != slowest]
    rest = make_plan(graph, without(profile, slowest)).plan
    kept = [others[member] for member in rest.members]
    skewed = [70.0, 25.0, 5.0, 5.0][:ranks]
    inputs = hetmp.plan_from_weights(graph, [1.0] * ranks)
    for number, layer in enumerate(inputs.layers):
        if number % 2:
            try:
                changed = inputs.with_layer(layer.name, scheme="inputs")
                schedule_model(graph, changed)
            except hetmp.HetmpError:
                continue
            inputs = changed
    speeds = [1 / seconds for seconds in alone]
    half = f"batch:{len(inputs.layers) // 2}"
    found = {
        "equal": hetmp.plan_from_weights(graph, [1.0] * ranks),
        "in proportion": hetmp.plan_from_weights(graph, speeds),
        "planned": planned.plan,
        "planned, again": planned.plan,
        "planned, filters": make_plan(graph, profile, PlanOptions(schemes=False)).plan,
        "filters": make_plan(graph, profile, PlanOptions(schemes=False, leave_out=False)).plan,
        "planned, all ranks": make_plan(graph, profile, PlanOptions(leave_out=False)).plan,
        "alone": hetmp.plan_from_weights(graph, [1.0]).spread([int(np.argmin(alone))], ranks),
        "without the slowest": rest.of_members().spread(kept, ranks),
        "skewed": hetmp.plan_from_weights(graph, skewed),
        "inputs": inputs,
        "batch": hetmp.plan_from_weights(graph, speeds, "batch"),
        "half by batch": hetmp.plan_from_weights(graph, speeds, half),
    }
    return {name: plan for name, plan in found.items() if not only or name in only}


def unmeasured(graph: ModelGraph, profile: Profile, plan: hetmp.Plan) -> list[str]:
    """What a plan computes and the profile has no times of: there was no time to measure it."""
    tables = Tables([profile.devices[rank] for rank in plan.members])
    steps = schedule_model(graph, plan.of_members()).training.steps
    works = [step_work(step, profile.batch_size) for step in steps if isinstance(step, CallStep)]
    needed = dict.fromkeys((work, kind) for work, kind, _ in works)
    return [f"{work} ({kind})" for work, kind in needed if not tables.has(work, kind)]


def ideal(graph: ModelGraph, profile: Profile) -> float:
    """The fastest rank's time alone, over the sum of all speeds relative to it."""
    ranks = range(len(profile.devices))
    one = hetmp.plan_from_weights(graph, [1.0])
    alone = np.array(
        [predicted(graph, profile, one.spread([r], len(ranks))).seconds for r in ranks]
    )
    return float(1 / (1 / alone).sum())


def floor_of_tables(graph: ModelGraph, profile: Profile) -> float:
    """Seconds of a step by the plan with all ranks, if exchanges took no time."""
    plan = make_plan(graph, profile, PlanOptions(leave_out=False, schemes=False)).plan
    schedule = schedule_model(graph, plan)
    tables, links = Tables(profile.devices), Links((), 1, 1)
    table = make_table(graph, schedule)
    return predict(graph, schedule, table, tables, links, profile.batch_size).seconds


def main() -> None:
    """Profile, plan, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--shape", default="")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--slowdown", default="")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", default="", help="names of plans, separated by semicolons")
    parser.add_argument("--json", type=Path, help="append the figures as a line")
    args = parser.parse_args()
    group = Group()
    share_cores(group)
    published, classes = models.published(args.model)
    shape = tuple(map(int, args.shape.split(","))) if args.shape else published
    count = args.classes or classes
    slowdown = [float(s) for s in args.slowdown.split(",")] if args.slowdown else [1.0] * group.size
    with torch.device("meta"):
        outline = models.build(args.model, shape, count)
    batch = [args.batch_size, *shape]
    example = torch.empty(batch, device="meta")
    own_slowdown = slowdown[group.rank]
    began = time.perf_counter()
    profile = profile_model(
        outline,
        example,
        group,
        name=args.model,
        budget=Budget(args.seconds),
        slowdown=own_slowdown,
    )
    profiled = time.perf_counter() - began
    graph = read_graph(outline, example)
    only = [name for name in args.only.split(";") if name]
    texts, lacking = {}, {}
    with group.together():
        if group.is_root:
            made = plans(graph, profile, only)
            lacking = {name: unmeasured(graph, profile, plan) for name, plan in made.items()}
            texts = {name: p.model_dump_json() for name, p in made.items() if not lacking[name]}
            if not texts:
                raise hetmp.HetmpError(f"nothing is left to compare: {left_out(args, lacking)}")
    known: dict[str, str] = json.loads(group.broadcast_text(json.dumps(texts)))
    chosen = {name: hetmp.Plan.model_validate_json(text) for name, text in known.items()}
    torch.manual_seed(0)
    module = models.build(args.model, shape, count)
    images = torch.randn(batch, generator=torch.Generator().manual_seed(0))
    contenders = {
        name: Contender(module, p, group, own_slowdown, images) for name, p in chosen.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.repeats):
        for name, contender in contenders.items():
            seconds[name].append(contender.step())
    if group.is_root:
        report(args, slowdown, profiled, graph, profile, chosen, seconds)
        if any(lacking.values()):
            print(left_out(args, lacking))


def left_out(args: Any, lacking: dict[str, list[str]]) -> str:
    """Which plans are not compared, and why: *lacking* has what each one needs."""
    lines = [
        f"{name}: {args.seconds:g} s were too few to measure {works[0]}"
        + (f" and {len(works) - 1} more" if len(works) > 1 else "")
        for name, works in lacking.items()
        if works
    ]
    if not lines:
        return f"no plan is called {args.only!r}"
    return "plans left out (more --seconds would measure what they need):\n  " + "\n  ".join(lines)


def report(
    args: Any,
    slowdown: list[float],
    profiled: float,
    graph: ModelGraph,
    profile: Profile,
    chosen: dict[str, hetmp.Plan],
    seconds: dict[str, list[float]],
) -> None:
    """Print the comparison; append it to a file where that is wanted."""
    print(
        f"{args.model}, batch {args.batch_size}, ranks slowed by "
        f"{', '.join(f'{s:g}' for s in slowdown)}; profiled in {profiled:.0f} s"
    )
    print(
        f"{'plan':20s} {'predicted':>10s} {'measured':>10s} {'quartiles':>15s} {'error':>7s} "
        f"{'moved':>9s}"
    )
    rows = {}
    for name, plan in chosen.items():
        step, median = predicted(graph, profile, plan), statistics.median(seconds[name])
        forecast = step.seconds
        low, high = np.percentile(seconds[name], [25, 75])
        rows[name] = {
            "predicted": forecast,
            "measured": median,
            "bytes": step.received,
            "schemes": [layer.scheme for layer in plan.layers],
            "left out": list(plan.left_out),
            "all": seconds[name],
        }
        spread = f"{1e3 * low:.0f}-{1e3 * high:.0f}"
        print(
            f"{name:20s} {1e3 * forecast:7.0f} ms {1e3 * median:7.0f} ms {spread:>15s} "
            f"{100 * (forecast / median - 1):+6.1f} % {step.received / 1e6:6.0f} MB"
        )
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in rows.values()]
    print(f"median absolute error {100 * statistics.median(errors):.1f} %")
    goal = ideal(graph, profile)
    floor = floor_of_tables(graph, profile)
    if "planned" in rows:
        for name, row in rows.items():
            if name != "planned":
                ratios = np.array(seconds[name]) / np.array(seconds["planned"])
                low, high = interval(ratios)
                ratio = row["measured"] / rows["planned"]["measured"]
                print(f"{name} / planned: {ratio:.2f} ({low:.2f}-{high:.2f})")
        print(
            f"planned / ideal ({1e3 * goal:.0f} ms): {rows['planned']['measured'] / goal:.2f}; "
            f"floor / ideal: {floor / goal:.2f}"
        )
        plan = chosen["planned"]
        print(f"left out: {list(plan.left_out) or 'none'}")
        print(
            "  ".join(
                f"{x.name} {x.scheme} {'/'.join(f'{n:g}' for n in x.weights or x.counts)}"
                for x in plan.layers
            )
        )
    if args.json:
        line = {
            "model": args.model, "batch_size": args.batch_size, "slowdown": slowdown,
            "ideal": goal, "floor": floor, "plans": rows,
        }  # fmt: skip
        with args.json.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    try:
        main()
    except AgreedError as error:
        sys.exit(f"planner.py: {error}" if Group().is_root else 1)
