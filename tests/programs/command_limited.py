"""The program ``hetmp`` in little memory: argument 1 is its budget in bytes, the others its own.

The networks for it are here, too: they are large, and cheap to compute.
"""

import sys
from collections.abc import Sequence

from memory_limited import limit
from torch import nn

WIDTH, DEPTH = 2048, 10


def wide(input_shape: Sequence[int], classes: int) -> nn.Module:
    """WIDTH squared times DEPTH weights, and a few."""
    return _network(input_shape, classes, WIDTH, DEPTH)


def narrow(input_shape: Sequence[int], classes: int) -> nn.Module:
    """The same layers, of next to no size."""
    return _network(input_shape, classes, 12, 1)


def _network(input_shape: Sequence[int], classes: int, width: int, depth: int) -> nn.Module:
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    first = nn.Conv2d(input_shape[0], width, input_shape[1:])
    return nn.Sequential(first, nn.Flatten(), *layers, nn.Linear(width, classes))


def main() -> None:
    from hetmp.cli import main
    from hetmp.run.config import train_config
    from hetmp.run.train import train

    budget, arguments = int(sys.argv[1]), sys.argv[2:]
    # What is imported and started on the way is no part of the budget.
    name = "command_limited:narrow"
    told = {"shape": (1, 2, 2), "classes": 3, "samples": 20, "device": "cpu", "layerwise": True}
    train(train_config(model=name, data="synthetic", steps=1, momentum=0.0, **told))
    limit(budget)
    sys.argv = ["hetmp", *arguments]
    main()


if __name__ == "__main__":
    main()
