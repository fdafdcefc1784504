"""Operations without a rule: every rank computes them whole, from full operands."""

import copy
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from hetmp.cluster import Group
from hetmp.core.state import L, States
from hetmp.ops.call import Call, OperatorRun
from hetmp.ops.rule import Rule


class Whole(Rule):
    """An operation that every rank computes whole, with all its parameters.

    Its random numbers must be the same on all ranks: see ``seeded``.
    """

    # Running statistics, whatever normalization layer keeps them.
    initial_buffers: ClassVar = {
        "running_mean": 0.0,
        "running_var": 1.0,
        "num_batches_tracked": 0.0,
    }
    # Of operations without a rule.
    views = ("diagonal", "moveaxis", "positive", "ravel", "select")
    random = (
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
        *("bernoulli", "normal", "multinomial", "rrelu", "gumbel_softmax"),
        *("bernoulli_", "uniform_", "normal_", "random_", "exponential_"),
        *("alpha_dropout", "feature_alpha_dropout", "feature_dropout"),
        *("fractional_max_pool2d", "fractional_max_pool3d"),
    )

    def flow(self, call: Call, states: States[L]) -> None:
        return None

    def tensors(self, layer: nn.Module) -> tuple[str, ...]:
        named = (*layer.named_parameters(remove_duplicate=False), *layer.named_buffers())
        return tuple(name for name, _ in named)

    def local(self, run: OperatorRun, group: Group, device: torch.device) -> nn.Module:
        memo: dict[int, Any] = {}
        for parameter in run.layer.parameters():
            fresh = torch.empty_like(parameter, device=device)
            memo[id(parameter)] = nn.Parameter(fresh, requires_grad=parameter.requires_grad)
        for buffer in run.layer.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device=device)
        local: nn.Module = copy.deepcopy(run.layer, memo)
        return local

    def function(self, run: OperatorRun, group: Group) -> Callable[..., Any]:
        return lambda *args, **kwargs: run.call.invoke(args, kwargs)


@contextmanager
def seeded(key: int, name: str, device: torch.device) -> Iterator[None]:
    """Seed torch's generators with (*key*, *name*) inside, and restore them afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(zlib.crc32(f"{key} {name}".encode()))
        yield
