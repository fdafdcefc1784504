"""A loop of a user's own in which the last rank leaves a step early: argument 1 says what it does.

``ends``: its program is over. ``sleeps``: it goes on without the others. ``splits``: it sums the
gradients of another number of parameters in the last step.
"""

import sys
import time

import torch
from torch import nn

import hetmp

STEPS = 5


def main() -> None:
    torch.manual_seed(0)
    group = hetmp.Group()
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    model = hetmp.slice_model(module, [2] + [1] * (group.size - 1))
    last = group.rank == group.size - 1
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    for _ in range(STEPS - last):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
    if last and sys.argv[1] == "sleeps":
        time.sleep(600)


if __name__ == "__main__":
    main()
