"""A loop of a user's own in which the last rank does not do as the others: argument 1 says how.

``ends``: it leaves the loop a step early, and its program is over. ``sleeps``: it leaves the loop a
step early and goes on without the others. ``raises``: it fails before the last step.
``comes late``: it begins the last step after a while.
"""

import sys
import time

import torch
from torch import nn

import hetmp

STEPS = 5


def main() -> None:
    how = sys.argv[1]
    torch.manual_seed(0)
    group = hetmp.Group()
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    model = hetmp.slice_model(module, [2] + [1] * (group.size - 1))
    last = group.rank == group.size - 1
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    for step in range(STEPS):
        if last and step == STEPS - 1:
            if how == "ends":
                return
            if how == "raises":
                raise RuntimeError("rank 1 does not go on")
            time.sleep(2 if how == "comes late" else 600)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()


if __name__ == "__main__":
    main()
