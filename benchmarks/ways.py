"""How fast one exchange is in each of the ways it could be done: packing, datatypes, windows.

    mpirun -n 2 python benchmarks/ways.py

prints, for activations of paper-cifar at batch 100 in equal slices, the median milliseconds of a
gather (sliced -> full) and of a reduce-scatter (partial -> sliced), packing included, and of a
convolution at once and in parts that could overlap with them. Every way is checked against the
first before it is timed, and the ways take turns.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetmp import Exchange, Group, Layout, apportion
from hetmp.core.state import FULL, PARTIAL, Sliced
from hetmp.exchange import Carriage

REPEATS = 25
SHAPES = ((100, 60, 32, 32), (100, 240, 8, 8), (100, 480, 4, 4))
LAST = (0, 2, 3, 1)

# What a rank of two has of a convolution: half the filters. In parts, its own half of the input
# comes first (while the other half is under way), and backward the other rank's half of the
# input's gradient (so that it need not be packed).


def main() -> None:
    """Time every way for every shape; rank 0 prints the slowest rank's medians."""
    from mpi4py import MPI

    torch.set_num_threads(1)
    group = Group()
    if group.is_root:
        print(f"{group.size} ranks, {MPI.Get_library_version().splitlines()[0]}")
    for shape in SHAPES:
        for kind, make in KINDS.items():
            times = turns(group, make(group, shape))
            if group.is_root:
                print(f"\n{kind} of {'×'.join(map(str, shape))}")
                for name, milliseconds in times.items():
                    print(f"  {name:44} {milliseconds:7.2f}")


def convolutions(group: Group, shape: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """A convolution forward and its input's gradient, at once and in two parts."""
    n, c, h, w = shape
    layout = torch.channels_last if h * w > 16 else torch.contiguous_format

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes).contiguous(memory_format=layout)

    x, weight, gradient = normal(*shape), normal(c // 2, c, 3, 3), normal(n, c // 2, h, w)
    xs, weights = (
        [part.contiguous(memory_format=layout) for part in whole.split(c // 2, 1)]
        for whole in (x, weight)
    )

    def back(weight: Tensor) -> Tensor:
        return torch.nn.grad.conv2d_input((n, weight.shape[1], h, w), weight, gradient, padding=1)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return torch.conv2d(x, weight, padding=1)

    return {
        "forward and input gradient at once": lambda: (back(weight), forward(x, weight))[1],
        "forward in two parts": lambda: (
            back(weight),
            forward(xs[0], weights[0]).add_(forward(xs[1], weights[1])),
        )[1],
        "input gradient in two parts": lambda: (
            [back(part) for part in weights],
            forward(x, weight),
        )[1],
    }


def turns(group: Group, ways: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Milliseconds of each way, after a check that all give the same."""
    first = next(iter(ways.values()))().clone()
    for name, way in ways.items():
        assert torch.allclose(way(), first, atol=1e-3), name
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            group.comm.Barrier()
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * statistics.median(seconds) for name, seconds in taken.items()}
    return {
        name: float(group.allgather(np.array([value])).max()) for name, value in medians.items()
    }


def gathers(group: Group, shape: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """The ways to gather."""
    from mpi4py import MPI

    n, c, h, w = shape
    layout = Layout.of(apportion(c, [1.0] * group.size))
    exchange = Exchange(group, Sliced(layout), FULL)
    mine = torch.randn(n, layout.counts[group.rank], h, w)
    last = mine.contiguous(memory_format=torch.channels_last)
    whole = np.empty(shape, np.float32)
    counts = [count * n * h * w for count in layout.counts]
    received = np.empty(sum(counts), np.float32)
    persistent: Any = None
    if hasattr(group.comm, "Allgatherv_init"):
        packed = mine.reshape(-1).numpy()
        try:
            persistent = group.comm.Allgatherv_init(packed, [received, counts])
        except NotImplementedError:
            persistent = None

    def channel(channels: int) -> Any:
        """n planes that lie *channels* planes apart, counted in steps of one plane."""
        planes = MPI.FLOAT.Create_vector(n, h * w, channels * h * w)
        return planes.Create_resized(0, h * w * 4).Commit()

    ours, theirs = channel(mine.shape[1]), channel(c)
    starts = np.cumsum([0, *layout.counts[:-1]]).tolist()

    def typed() -> Tensor:
        send = [mine.numpy(), mine.shape[1], ours]
        group.comm.Allgatherv(send, [whole, list(layout.counts), starts, theirs])
        return torch.from_numpy(whole)

    def again() -> Tensor:
        persistent.Start()
        persistent.Wait()
        parts = torch.from_numpy(received).split(counts)
        return torch.cat([p.view(n, -1, h, w) for p in parts], dim=1)

    def carried(x: Tensor, how: Carriage) -> Callable[[], Tensor]:
        return lambda: exchange.move(x, how, blocking=True).wait()

    ways = {
        "NCHW, pack, Allgatherv, unpack": carried(mine, Carriage(shared=False)),
        "NCHW, Allgatherv of vector datatypes": typed,
        "NCHW, shared memory": carried(mine, Carriage(borrowed=True)),
        "NHWC, pack, Allgatherv, unpack": carried(last, Carriage(shared=False, order=LAST)),
        "NHWC, shared memory": carried(last, Carriage(borrowed=True, order=LAST)),
        "NHWC -> NCHW, shared memory": carried(last, Carriage(borrowed=True)),
    }
    if persistent is not None:
        ways["NCHW, packed once, persistent Allgatherv"] = again
    return ways


def scatters(group: Group, shape: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """The ways to sum and scatter."""
    n, c, h, w = shape
    layout = Layout.of(apportion(c, [1.0] * group.size))
    exchange = Exchange(group, PARTIAL, Sliced(layout))
    summand = torch.randn(shape)
    last = summand.contiguous(memory_format=torch.channels_last)
    size = layout.counts[group.rank] * n * h * w
    counts = [count * n * h * w for count in layout.counts]

    def all_to_all() -> Tensor:
        send = torch.cat([part.reshape(-1) for part in summand.split(layout.counts, 1)]).numpy()
        received = np.empty(size * group.size, np.float32)
        group.comm.Alltoallv([send, counts], [received, [size] * group.size])
        return torch.from_numpy(received).view(group.size, n, -1, h, w).sum(0)

    def carried(x: Tensor, how: Carriage) -> Callable[[], Tensor]:
        return lambda: exchange.move(x, how, blocking=True).wait()

    return {
        "NCHW, pack, Reduce_scatter": carried(summand, Carriage(shared=False)),
        "NCHW, pack, Alltoallv, sum": all_to_all,
        "NCHW, shared memory": carried(summand, Carriage()),
        "NHWC, pack, Reduce_scatter": carried(last, Carriage(shared=False, order=LAST)),
        "NHWC, shared memory": carried(last, Carriage(order=LAST)),
    }


KINDS = {"gather": gathers, "scatter": scatters, "convolution": convolutions}

if __name__ == "__main__":
    main()
