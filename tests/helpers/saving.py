"""What the checkpoint tests share: communicators of some ranks, a network, some steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hetmp
from hetmp.slicing.plan import Plan


def world() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD


def ranks(chosen: Sequence[int]) -> Any:
    """A communicator of some ranks; None on the others. Collective over all."""
    from mpi4py import MPI

    here = world().rank in chosen
    comm = world().Split(0 if here else MPI.UNDEFINED, world().rank)
    return comm if here else None


def shared(path: Path) -> Path:
    """Rank 0's folder on every rank."""
    return Path(world().bcast(str(path)))


def network(dropout: float = 0.3) -> nn.Module:
    """Prime channel counts, a batch norm's buffers, dropout, a head."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 13, 3, padding=1),
        nn.BatchNorm2d(13),
        nn.ReLU(),
        nn.Conv2d(13, 7, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(7, 11, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(11, 5),
    ).double()


def uneven(size: int, *, turned: bool = False) -> list[float]:
    """1:2:3-like weights with a zero share, from either end."""
    weights = [3.0, 1.0, 2.0, 0.0, 1.5][:size]
    return weights[::-1] if turned else weights


def optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)


def sliced(comm: Any, weights: Sequence[float], schemes: dict[str, str] | None = None) -> Any:
    """The network on the ranks of *comm*; some layers by other schemes."""
    module = network()
    plan: Sequence[float] | Plan = weights
    if schemes:
        plan = hetmp.plan_from_weights(hetmp.read_graph(module), weights)
        for name, scheme in schemes.items():
            plan = plan.with_layer(name, scheme=scheme)  # type: ignore[arg-type]
    return hetmp.slice_model(module, plan, comm, verify=False)


def steps(model: nn.Module, opt: torch.optim.Optimizer, begin: int, end: int) -> list[float]:
    """Train on batches *begin* to *end*; the losses."""
    losses = []
    for number in range(begin, end):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(5, (4,), generator=generator)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return losses
