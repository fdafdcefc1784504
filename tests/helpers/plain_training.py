"""A training run in plain torch on one process, which a run of hetmp is compared with."""

import math

import torch
from torch import nn

from hetmp import data, models

STEPS = 30


def plain_run(
    optimizer_name: str,
    clip: float | None,
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
    lr: float = 0.05,
    model: str = "digits",
):
    """The same run in plain torch on one process, written out independently."""
    torch.manual_seed(0)
    digits = data.load("digits", seed=0)
    net = models.build(model, digits.input_shape, digits.classes).to(dtype)
    optimizer: torch.optim.Optimizer
    if optimizer_name == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    curve = []
    for epoch in range(steps):
        for images, labels in data.batches(digits.train, 64, seed=0, epoch=epoch):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * len(curve) / steps)) / 2
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images.to(dtype)), labels)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            curve.append(loss.item())
            if len(curve) == steps:
                net.eval()
                test = digits.test
                with torch.no_grad():
                    right = net(test.images.to(dtype)).argmax(1) == test.labels
                return torch.tensor(curve, dtype=torch.float64), net, float(right.double().mean())
    raise AssertionError("unreachable")
