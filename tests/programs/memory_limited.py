"""A program that trains a large network in little memory: argument 1 is its budget in bytes.

No private memory above what MPI and the imports took and the budget is to be had: the kernel
refuses it. The network is never whole anywhere; each rank makes one parameter at a time.
"""

import math
import resource
import sys
from pathlib import Path

import torch
from torch import nn

import hetmp

WIDTH, DEPTH = 2048, 10


def values(name, shape, generator):
    """He's start, as near as it matters."""
    if len(shape) == 1:
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator).mul_(math.sqrt(2 / shape[1]))


def limit(budget):
    """Let this process have *budget* bytes more of private memory than it has now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * used + budget, hard))


def train(group, width, depth):
    """Two steps; the last loss."""
    with torch.device("meta"):
        layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
        module = nn.Sequential(*layers, nn.Linear(width, 10))
    model = hetmp.slice_model(module, [1] * group.size, init=values, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, labels = torch.randn(4, width), torch.tensor([1, 2, 3, 4])
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    torch.manual_seed(0)
    group = hetmp.Group()
    train(group, 12, 1)  # what is imported and started on the way is no part of the budget
    limit(int(sys.argv[1]))
    group.say(f"loss {train(group, WIDTH, DEPTH)}")


if __name__ == "__main__":
    main()
