"""LARS and LAMB: steps as long as each whole tensor's norms say, though ranks hold slices."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL
from hetmp.exchange import plain_tensors
from hetmp.optim.sliced_model import runtime_of

Member = tuple[dict[str, Any], Tensor]
"""A group of parameters with its options, and one parameter of it."""


class LayerwiseOptimizer(torch.optim.Optimizer):
    """The common part of LARS and LAMB: one exchange of squared norms a step.

    ``step()`` is collective over the model's group, also for a rank whose slices are all empty.
    State has the shape of the parameter, so it is cut, saved and loaded as the parameter is.
    """

    measures_whole_tensors = True

    def __init__(self, model: nn.Module, params: Any, defaults: dict[str, Any]) -> None:
        runtime = runtime_of(model, type(self).__name__)
        self._group = runtime.group
        self._entries = {id(p): runtime.table[name] for name, p in model.named_parameters()}
        super().__init__(model.parameters() if params is None else params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters of the sliced model, with options of their own.

        Raises:
            HetmpError: a parameter that is not the model's.
        """
        super().add_param_group(param_group)
        if any(id(p) not in self._entries for p in self.param_groups[-1]["params"]):
            raise HetmpError(
                f"{type(self).__name__} was given a parameter that is not the sliced model's: "
                "take them from model.parameters() after slice_model"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters from their gradients. Collective.

        A parameter without a gradient is left as it is.

        Args:
            closure: runs the model again and returns the loss; called once, on every rank.

        Returns:
            What *closure* returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = [(group, p) for group in self.param_groups for p in group["params"]]
        with plain_tensors():
            norms = self._whole_norms(members)
            for member, (weights, direction) in zip(members, norms.tolist(), strict=True):
                if member[1].grad is not None:
                    self._move(*member, weights, direction)
        return loss

    def _whole_norms(self, members: Sequence[Member]) -> npt.NDArray[np.float64]:
        """Return (parameters, 2): 2-norms of each whole parameter and its direction. Collective."""
        squares = [
            _square(tensor)
            for group, p in members
            for tensor in ((p, self._direction(group, p)) if p.grad is not None else _nothing(p))
        ]
        mine = _on_host(squares).reshape(-1, 2)
        everyones = self._group.allgather(mine)  # (ranks, parameters, 2)
        sums = everyones.sum(axis=0)
        # What all hold alike counts once: by rank 0's sum, so that replicas never drift apart.
        alike = [self._entries[id(p)].state == FULL for _, p in members]
        sums[alike] = everyones[0, alike]
        return np.sqrt(sums)

    def _plain(self, group: dict[str, Any], p: Tensor) -> bool:
        """Return whether *p* gets neither adaptation nor decay: by the whole tensor's axes."""
        return bool(group["exclude_1d"]) and len(self._entries[id(p)].shape) <= 1

    @abstractmethod
    def _direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """Return the tensor of the second norm, in *p*'s shape; called once a step."""

    @abstractmethod
    def _move(self, group: dict[str, Any], p: Tensor, weights: float, direction: float) -> None:
        """Update *p* from both norms."""


class LARS(LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling: SGD whose rate is scaled for every tensor.

    You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks" (2017), algorithm 1,
    with the weight w, its gradient g and the momentum v of one tensor:

        local = trust · ‖w‖ / (‖g‖ + weight_decay · ‖w‖ + eps)
        v = momentum · v + lr · local · (g + weight_decay · w)
        w = w − v

    local is 1 where ‖w‖ or ‖g‖ is 0. As lr is within v, a new learning rate acts on new gradients
    only.

    Args:
        model: made by ``slice_model``.
        lr: 0 or more.
        momentum, weight_decay, trust, eps: 0 or more.
        exclude_1d: whether tensors with one axis (biases, norms' scales) go without local rate
            and decay, as in the code of those who train with it.
        params: parameters of the model, or groups of them with options of their own; all if None.

    Raises:
        HetmpError: an option out of range, or a model that is not sliced.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-8,
        exclude_1d: bool = True,
        *,
        params: Any = None,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "eps": eps,
        }
        _check_positive("lars", options)
        super().__init__(model, params, {**options, "exclude_1d": exclude_1d})

    def _direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        return p.grad

    def _move(self, group: dict[str, Any], p: Tensor, weights: float, direction: float) -> None:
        assert p.grad is not None
        rate, change = group["lr"], p.grad
        if not self._plain(group, p):
            decay = group["weight_decay"]
            change = change.add(p, alpha=decay)
            if weights > 0 and direction > 0:
                rate *= group["trust"] * weights / (direction + decay * weights + group["eps"])
        if group["momentum"] == 0:
            p.add_(change, alpha=-rate)
            return
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        p.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(change, alpha=rate))


class LAMB(LayerwiseOptimizer):
    """Layer-wise adaptive moments: AdamW whose step is scaled by each tensor's norms.

    You et al., "Large Batch Optimization for Deep Learning" (ICLR 2020), algorithm 2, with φ the
    identity and the moments m and v corrected for their start, as in Adam:

        u = m / (√v + eps) + weight_decay · w
        w = w − lr · ‖w‖ / ‖u‖ · u

    The ratio is 1 where a norm is 0.

    Args:
        model: made by ``slice_model``.
        lr, weight_decay: 0 or more.
        betas: of the two moments, each in [0, 1).
        eps: 0 or more.
        exclude_1d: whether tensors with one axis (biases, norms' scales) go without ratio and
            decay, as in the authors' code.
        params: parameters of the model, or groups of them with options of their own; all if None.

    Raises:
        HetmpError: an option out of range, or a model that is not sliced.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        exclude_1d: bool = True,
        *,
        params: Any = None,
    ) -> None:
        options = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
        _check_positive("lamb", options)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise HetmpError(f"lamb: betas are two numbers in [0, 1), got {betas}")
        defaults = {**options, "betas": tuple(betas), "exclude_1d": exclude_1d}
        super().__init__(model, params, defaults)

    def _direction(self, group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)  # as in torch's Adam
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        first, second = group["betas"]
        state["exp_avg"].lerp_(p.grad, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
        return self._update(group, p)

    def _move(self, group: dict[str, Any], p: Tensor, weights: float, direction: float) -> None:
        rate = group["lr"]
        if not self._plain(group, p) and weights > 0 and direction > 0:
            rate *= weights / direction
        p.add_(self._update(group, p), alpha=-rate)

    def _update(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """u. It is computed twice: to keep it for all parameters takes as much as gradients do."""
        state, (first, second) = self.state[p], group["betas"]
        step = float(state["step"])
        root = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(group["eps"])
        update = (state["exp_avg"] / (1 - first**step)).div_(root)
        return update if self._plain(group, p) else update.add_(p, alpha=group["weight_decay"])


def _nothing(p: Tensor) -> tuple[Tensor, Tensor]:
    # No gradient here is no gradient anywhere, or an empty slice: it adds nothing.
    return p.new_empty(0), p.new_empty(0)


def _square(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).square()


def _on_host(numbers: Sequence[Tensor]) -> npt.NDArray[np.float64]:
    """Return scalars as one array, with one wait for the device that they are on."""
    if not numbers:
        return np.zeros(0)
    device = numbers[0].device
    return torch.stack([number.to(device) for number in numbers]).cpu().numpy()


def _check_positive(name: str, options: dict[str, float]) -> None:
    wrong: Iterable[str] = (key for key, value in options.items() if not value >= 0)
    for key in wrong:
        raise HetmpError(f"{name}: {key} is 0 or more, got {options[key]}")
