"""Give a layer of your own a rule, so that it runs on slices.

Problem: a layer with a learnt threshold per channel computes its own gradient, to keep one tensor
for the backward pass instead of three. hetmp cannot look into a torch.autograd.Function. Without a
rule every rank would gather all channels and compute all of them. With a rule of a few lines each
rank computes its own channels, with its own thresholds.

Cost: about 5 seconds of a core for each of 3 ranks, most of them for importing torch. No files are
written.

    .venv/bin/mpirun -n 3 .venv/bin/python -m mpi4py examples/own_operator.py

docs/operators.md says what else a rule can tell.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hetmp
from hetmp import Sliced, State, data
from hetmp.ops import Call, Cuts, L, OperatorRun, Rule, cut_along


class Shrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        y = x.sign() * (x.abs() - threshold).clamp(min=0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (y,) = ctx.saved_tensors
        # (n, c, h, w) summed to (c, 1, 1)
        return gradient * (y != 0), -(gradient * y.sign()).sum((0, 2, 3))[:, None, None]


class ThresholdRule(Rule):
    """Every channel for itself, with a threshold of its own."""

    def gives(self, call: Call, source: Sliced[L]) -> State[L] | None:
        return source if source.axis == 1 else None  # None: it gets all channels

    def cuts(self, run: OperatorRun[L]) -> Cuts[L]:
        return cut_along(run.layer, {"threshold": 0}, run.source)


@hetmp.operator(ThresholdRule())
class Threshold(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> the same
        return Shrink.apply(x, self.threshold)


def check(speeds: list[float]) -> None:
    """Take a step with the sliced and with the unsliced network, and compare all parameters."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 12, 3), Threshold(12), nn.Conv2d(12, 10, 6), nn.Flatten()
    network = nn.Sequential(*layers).double()
    model = hetmp.slice_model(network, speeds, strict=True)  # strict: no operation without a rule
    for one in (model, network):
        F.cross_entropy(one(images), labels).backward()
        torch.optim.SGD(one.parameters(), lr=1.0).step()  # moves each parameter by its gradient
    for name, merged in hetmp.merge_model(model).items():
        torch.testing.assert_close(merged, network.state_dict()[name], rtol=0, atol=1e-12)
    counts = model.hetmp.plan.layer("0").counts
    group.say(f"channels and thresholds by rank {counts}: the step is the unsliced network's")


group = hetmp.Group()
images, labels = next(data.batches(data.load("digits").train, 64, seed=0, epoch=0))
images = images.double()
check([1 / (1 + rank) for rank in range(group.size)])
check([1.0] + [0.0] * (group.size - 1))  # ranks without a channel must take part, too
