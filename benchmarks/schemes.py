"""Which way of cutting a network is the fastest: filters, the batch, or the batch first?

Problem: early layers have large images and few weights, late layers the reverse. So training steps
by several schemes take turns on the same ranks (forward, backward, SGD with momentum; one untimed
step before each timed one): `filters` (twice, so that the spread of equal runs is seen), `batch`
(weighted data parallelism, and the same network) and `batch:K`, the first K layers by batch and the
rest by filters. Printed are each one's median, its ratio to `filters` with a 95 % interval over
turns, and the bytes that all ranks receive in a step, counted. --options adds `batch` without
overlapping exchanges, and with the steps of the optimizer shared.

Cost: some seconds for each scheme. --slowdown makes ranks slower, so that one machine can stand for
several; shares are in proportion to --weights.

    mpirun -n 2 python benchmarks/schemes.py paper-cifar --batch-size 100 --first 4,6
    mpirun -n 2 python benchmarks/schemes.py paper-cifar --first 6 --weights 3,1 --slowdown 1,3
    sudo benchmarks/between_nodes.sh --rate 1gbit -- \\
        python benchmarks/schemes.py paper-cifar --first 6
"""

import argparse
import statistics

import numpy as np
import torch
from contenders import Contender, interval

import hetmp
from hetmp import models
from hetmp.cluster import Group
from hetmp.cluster.device import share_cores
from hetmp.slicing.graph import read_graph

AGAIN = "filters, again"
"""The same as `filters`: what differs is noise."""

PLAIN, SHARED = "batch, no overlap", "batch, share_steps"


def main() -> None:
    """Slice, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--shape", default="")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--weights", default="", help="one for each rank; equal if left out")
    parser.add_argument("--slowdown", default="", help="one for each rank")
    parser.add_argument("--first", default="", help="numbers K of layers by batch: 4,6")
    parser.add_argument("--options", action="store_true", help="batch in two more ways")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    group = Group()
    share_cores(group)
    published, classes = models.published(args.model)
    shape = tuple(map(int, args.shape.split(","))) if args.shape else published
    weights = [float(w) for w in args.weights.split(",")] if args.weights else [1.0] * group.size
    slowdown = [float(s) for s in args.slowdown.split(",")] if args.slowdown else [1.0] * group.size
    torch.manual_seed(0)
    module = models.build(args.model, shape, args.classes or classes)
    images = torch.randn([args.batch_size, *shape], generator=torch.Generator().manual_seed(0))
    words = ["filters", "batch", *(f"batch:{k}" for k in args.first.split(",") if k)]
    schemes = {word: word for word in words} | {AGAIN: "filters"}
    schemes |= {PLAIN: "batch", SHARED: "batch"} if args.options else {}
    graph = read_graph(module, images)
    contenders = {
        name: Contender(
            module,
            hetmp.plan_from_weights(graph, weights, word),
            group,
            slowdown[group.rank],
            images,
            tuning=hetmp.Tuning(overlap=name != PLAIN),
            share_steps=name == SHARED,
        )
        for name, word in schemes.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.repeats):
        for name, contender in contenders.items():
            seconds[name].append(contender.step())
    received = {name: contender.received() for name, contender in contenders.items()}
    if not group.is_root:
        return
    print(
        f"{args.model}, batch {args.batch_size}, weights {args.weights or 'equal'}, ranks slowed "
        f"by {', '.join(f'{s:g}' for s in slowdown)}; {args.repeats} turns"
    )
    for name, took in seconds.items():
        ratios = np.array(took) / np.array(seconds["filters"])
        low, high = interval(ratios)
        print(
            f"{name:18s} {1e3 * statistics.median(took):7.0f} ms  {np.median(ratios):5.3f} "
            f"({low:.3f}-{high:.3f})  {received[name] / (2 * args.repeats) / 1e6:7.1f} MB"
        )


if __name__ == "__main__":
    main()
