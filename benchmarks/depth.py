"""What it takes to slice deep networks: seconds of each phase, and memory beside the model's.

Problem: slicing happens once, but Python does it, operation by operation. It must take seconds for
hundreds of layers, grow no faster than the layers do, and need less memory than the model has.

Networks of 100 to 1000 convolutions: a chain (convolution, batch norm, ReLU), residual blocks of
one stage, dense blocks as DenseNet-264 has them (6 : 12 : 64 : 48 layers), and an hourglass, whose
second half reads the first half's outputs beside its own. Under mpirun they are sliced over all
ranks, which but rank 0 have them on the meta device. The phases are timed one by one, without MPI;
"sliced" is all of slice_model. The peak is what Python's own objects take at most in slice_model,
on the rank where it is most, measured in a second pass (tracemalloc): it comes on top of the rank's
share of the model.

Cost: some seconds for each network and number of layers; ten times as much for the second pass.

    python benchmarks/depth.py
    mpirun -n 3 python benchmarks/depth.py --networks dense --layers 260 --weights 3,2,1
"""

import argparse
import contextlib
import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hetmp
from hetmp.models.densenet import DenseBlock
from hetmp.models.resnet import BasicBlock
from hetmp.slicing.scheduler import schedule_model
from hetmp.slicing.table import make_table

MB = 1e6
SHAPE = (2, 3, 32, 32)
GROWTH = 32
DENSE = (6, 12, 64, 48)
"""Layers of DenseNet-264's blocks, of two convolutions each."""


def ends(channels: int) -> list[nn.Module]:
    """(n, channels, h, w) to (n, 10)."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def unit(before: int, after: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def chain(layers: int, channels: int) -> nn.Module:
    """One layer after the other."""
    made = [unit(channels if number else 3, channels) for number in range(layers)]
    return nn.Sequential(*made, *ends(channels))


def residual(layers: int, channels: int) -> nn.Module:
    """All blocks in one stage: every addition ties its operands to all that came before."""
    blocks = [BasicBlock(channels, channels, 1) for _ in range((layers - 1) // 2)]
    return nn.Sequential(unit(3, channels), *blocks, *ends(channels))


def dense(layers: int, channels: int) -> nn.Module:
    """Every layer of a block reads all that those before it made."""
    depths = [max(1, layers // 2 * depth // sum(DENSE)) for depth in DENSE]
    made: list[nn.Module] = [unit(3, channels)]
    for depth in depths:
        made += [DenseBlock(channels, depth, GROWTH)]
        before = channels + depth * GROWTH
        channels = before // 2
        made += [nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, channels, 1), nn.AvgPool2d(2)]
    return nn.Sequential(*made, *ends(channels))


class Hourglass(nn.Module):
    """Its second half reads the first half's outputs, the last one first."""

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        half = layers // 2
        self.down = nn.ModuleList(unit(channels if i else 3, channels) for i in range(half))
        self.up = nn.ModuleList(unit(2 * channels, channels) for _ in range(half))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, channels, h, w)."""
        passed = []
        for layer in self.down:
            x = layer(x)
            passed.append(x)
        for layer in self.up:
            x = layer(torch.cat([passed.pop(), x], 1))
        return x


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "chain": chain,
    "residual": residual,
    "dense": dense,
    "hourglass": Hourglass,
}


class Timer:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str, work: Callable[[], Any]) -> Any:
        gc.collect()
        start = time.perf_counter()
        done = work()
        self.seconds[phase] = time.perf_counter() - start
        return done


def _phases(timer: Timer, module: nn.Module, x: Tensor, weights: list[int]) -> None:
    graph = timer("read", lambda: hetmp.read_graph(module, x))
    plan = timer("plan", lambda: hetmp.plan_from_weights(graph, weights))
    schedule = timer("schedule", lambda: schedule_model(graph, plan))
    timer("table", lambda: make_table(graph, schedule))


def measured(name: str, layers: int, told: Any, group: hetmp.Group) -> list[str]:
    """A row of the table."""
    x = torch.empty(SHAPE)
    with contextlib.nullcontext() if group.is_root else torch.device("meta"):
        module = NETWORKS[name](layers, told.channels)
    held = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    timer = Timer()
    _phases(timer, module, x, told.weights)

    def sliced() -> Any:
        return hetmp.slice_model(module, told.weights, example_input=x, device="cpu")

    nodes = len(timer("sliced", sliced).hetmp.graph.nodes)
    tracemalloc.start()
    sliced()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    most = float(group.allgather(np.array([python])).max())
    return [
        name,
        str(layers),
        str(nodes),
        f"{held / MB:.0f}",
        *(f"{seconds:.2f}" for seconds in timer.seconds.values()),
        f"{most / MB:.0f}",
        f"{most / held:.2f}",
    ]


HEADS = "network layers operations MB read plan schedule table sliced peak-MB peak/model"


def main() -> None:
    """Print a row for every network and number of layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--networks", default=",".join(NETWORKS), help="some of the default's")
    parser.add_argument("--layers", type=numbers, default=[100, 250, 500, 1000])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--weights", type=numbers, help="3,2,1: speeds; equal if not given")
    told = parser.parse_args()
    unknown = set(told.networks.split(",")) - set(NETWORKS)
    if unknown:
        parser.error(f"no network {', '.join(unknown)}: choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    group = hetmp.Group()
    told.weights = told.weights or [1] * group.size
    hetmp.slice_model(residual(3, 8), told.weights, example_input=torch.empty(SHAPE))  # imports
    heads = HEADS.split()
    if group.is_root:
        print("  ".join(heads), flush=True)
    for name in told.networks.split(","):
        for layers in told.layers:
            row = measured(name, layers, told, group)
            if group.is_root:
                cells = zip(row, heads, strict=True)
                print("  ".join(cell.rjust(len(head)) for cell, head in cells), flush=True)


if __name__ == "__main__":
    main()
