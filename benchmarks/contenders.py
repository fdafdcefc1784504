"""Training steps by several plans that take turns on the same ranks, and how sure their ratios are.

For the other files of this folder. A step is forward, backward and SGD with momentum; one untimed
step goes before each timed one.
"""

import time

import numpy as np
import torch
from torch import nn

import hetmp
import hetmp.optim
from hetmp.cluster import Group
from hetmp.exchange import BackwardSum, Exchange


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """Where the median lies with 95 % confidence: a bootstrap over turns."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


class Contender:
    """Training steps by one plan, on the ranks that take part in it. Collective over *group*.

    Args:
        module: the whole network, with values on every rank.
        plan: for all ranks of *group*.
        factor: by which this rank is slowed.
        images: the batch.
        tuning: of the sliced model.
        share_steps: whether the ranks share the steps of the optimizer.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: hetmp.Plan,
        group: Group,
        factor: float,
        images: torch.Tensor,
        tuning: hetmp.Tuning | None = None,
        share_steps: bool = False,
    ) -> None:
        self.group, self.images = group, images
        self.comm = group.part(plan.members)
        if self.comm is None:
            return
        self.model = hetmp.slice_model(
            module, plan.of_members(), self.comm, example_input=images, tuning=tuning, verify=False
        )
        self.model.hetmp.group.slowdown.factor = factor
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        if share_steps:
            hetmp.optim.share_steps(self.optimizer, self.model)

    def step(self) -> float:
        """Seconds of the slowest member. Collective over all ranks."""
        took = 0.0
        if self.comm is not None:
            slowdown = self.model.hetmp.group.slowdown
            slowdown.resume()  # the others did not compute for us
            self._train()
            self.comm.Barrier()
            slowdown.resume()
            began = time.perf_counter()
            self._train()
            took = time.perf_counter() - began
        self.group.meet()
        return float(self.group.allgather(np.array([took])).max())

    def _train(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.images).square().mean().backward()
        self.optimizer.step()

    def received(self) -> float:
        """Bytes that all ranks received so far. Collective over all ranks."""
        mine = 0
        for module in self.model.modules() if self.comm is not None else ():
            if isinstance(module, Exchange):
                mine += module.forward_counter.bytes + module.backward_counter.bytes
            elif isinstance(module, BackwardSum):
                mine += module.backward_counter.bytes
        return float(self.group.allgather(np.array([mine])).sum())
