"""Steps of replicated parameters, shared by the ranks: each keeps the state of its rows alone.

The first stage of ZeRO (Rajbhandari et al., SC 2020) with unequal shares.
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn

from hetmp.cluster import AgreedError, Group
from hetmp.core.errors import HetmpError
from hetmp.core.partition import Layout, Partition, Weight, apportion, checked_weights
from hetmp.core.state import FULL, Sliced
from hetmp.exchange import Exchange
from hetmp.optim.sliced_model import runtime_of
from hetmp.slicing.optimizer_guard import ELEMENTWISE
from hetmp.slicing.plan import Plan
from hetmp.slicing.step_shares import make_share, step_share


def share_steps(
    optimizer: torch.optim.Optimizer, model: nn.Module, weights: Sequence[Weight] | None = None
) -> None:
    """Let each rank step some rows of the replicated parameters, and gather the others' after.

    Collective, as every step is from then on. The optimizer's state of these parameters takes a
    rank its share of the memory, and a step its share of the time. ``zero_grad``, clipping,
    ``GradScaler`` and checkpoints work as before.

    Args:
        optimizer: one of torch's that work element by element, of parameters of *model*, before
            its first step.
        model: made by ``slice_model``.
        weights: the ranks' shares; None for those of the plan's batch, or of its channels.

    Raises:
        HetmpError: on every rank, for another optimizer, one that has stepped, or weights that
            cannot be used.
    """
    runtime = runtime_of(model, "share_steps")
    group = runtime.group
    with group.together():
        if type(optimizer) not in ELEMENTWISE:
            raise HetmpError(
                f"share_steps: {type(optimizer).__name__} does not step element by element, as far "
                "as is known: use one of torch's own, such as SGD, Adam or AdamW"
            )
        if optimizer.state:
            raise HetmpError("share_steps: the optimizer has stepped: share before the first step")
        shares = checked_weights(weights or _plan_weights(runtime.plan), group.size)
    table = runtime.table
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    shared: list[nn.Parameter] = []
    for options in optimizer.param_groups:
        for number, parameter in enumerate(options["params"]):
            name = names.get(id(parameter))
            rows = parameter.shape[0] if parameter.dim() else 0
            if name is None or table[name].state != FULL or rows < group.size or group.size == 1:
                continue
            layout = Layout.of(apportion(rows, shares))
            options["params"][number] = share = make_share(parameter, layout, group.rank)
            shared.append(share)
            parameter.register_post_accumulate_grad_hook(_Passed(share, layout, group.rank))
    _SharedSteps(group, shared).attach(optimizer)


def _plan_weights(plan: Plan) -> Sequence[float]:
    """Return a plan's shares of the batch; of all its channels where no layer cuts the batch."""
    by_batch = (layer.weights for layer in plan.layers if layer.weights)
    return next(by_batch, plan.held) if any(plan.held) else next(by_batch, (1.0,) * plan.ranks)


class _Passed:
    """Passes a parameter's gradient on to the share that is stepped, whenever it grows."""

    def __init__(self, share: nn.Parameter, layout: Layout, rank: int) -> None:
        self._share = share
        (self._rows,) = layout.slices(rank)

    def __call__(self, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or gradient.dtype != self._share.dtype:
            self._share.grad = None  # it moved: the step refuses that
        else:
            self._share.grad = gradient[self._rows]


class _SharedSteps:
    """What happens around the steps of an optimizer of shares."""

    def __init__(self, group: Group, shares: list[nn.Parameter]) -> None:
        self._group, self._shares = group, shares
        self._exchanges: dict[tuple[torch.dtype, torch.device], Exchange] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let *optimizer* gather after its steps, and forget gradients of the whole."""
        if not self._shares:
            return
        optimizer.register_step_pre_hook(self._check)
        optimizer.register_step_post_hook(self._gather)
        usual = optimizer.zero_grad
        shares = self._shares

        def zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
            usual(set_to_none)
            for share in shares:
                whole = _whole(share)
                if set_to_none:
                    whole.grad = None
                elif whole.grad is not None:
                    whole.grad.zero_()

        vars(optimizer)["zero_grad"] = MethodType(zero_grad, optimizer)

    def _check(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Take the gradients as they are now; refuse parameters that have moved. Not collective."""
        for share in self._shares:
            whole = _whole(share)
            (rows,) = _layout(share).slices(self._group.rank)
            if whole.dtype != share.dtype or whole[rows].data_ptr() != share.data_ptr():
                raise AgreedError(
                    "parameters were moved or replaced since share_steps: move the model first, "
                    "then make the optimizer and share its steps"
                )
            share.grad = None if whole.grad is None else whole.grad[rows]

    @torch.no_grad()
    def _gather(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Take the other ranks' rows, in one message for each dtype and device. Collective."""
        kinds = dict.fromkeys((share.dtype, share.device) for share in self._shares)
        for dtype, device in kinds:
            same = [s for s in self._shares if (s.dtype, s.device) == (dtype, device)]
            mine = torch.cat([share.detach().reshape(-1) for share in same])
            exchange = self._exchange(dtype, device, same)
            whole = exchange.move(mine, blocking=True).wait()
            at = 0
            for rank in range(self._group.size):
                for share in same:
                    parameter = _whole(share)
                    (rows,) = _layout(share).slices(rank)
                    theirs = parameter.detach()[rows]
                    size = theirs.numel()
                    if rank != self._group.rank:
                        theirs.copy_(whole[at : at + size].view(theirs.shape))
                    at += size

    def _exchange(
        self, dtype: torch.dtype, device: torch.device, same: list[nn.Parameter]
    ) -> Exchange:
        if (dtype, device) not in self._exchanges:
            counts = tuple(
                sum(_layout(s).counts[rank] * _whole(s)[0].numel() for s in same)
                for rank in range(self._group.size)
            )
            source: Sliced[Layout] = Sliced(Layout.of(Partition(counts)), 0)
            exchange = Exchange(self._group, source, FULL, None, "parameters that ranks stepped")
            self._exchanges[dtype, device] = exchange
        return self._exchanges[dtype, device]


def _whole(share: nn.Parameter) -> nn.Parameter:
    known = step_share(share)
    assert known is not None
    return known.parameter


def _layout(share: nn.Parameter) -> Layout:
    known = step_share(share)
    assert known is not None
    return known.state.layout
