"""What is computed of a whole parameter, of which every rank holds a share."""

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.core.state import FULL, Sliced, State
from hetmp.exchange import Exchange, plain_tensors, share_of, share_shape
from hetmp.slicing.shares.share import Origin, origin_of, share_of_tensor


def whole(tensor: Tensor, *, of: Tensor | None = None) -> Tensor:
    """Gather the whole tensor that a parameter of a sliced model, or its gradient, is a share of.

    Collective where the parameter is cut. Differentiable: of a gradient each rank keeps its
    share, so every rank must compute the same loss from the result, as from the model's output.

    Args:
        tensor: a parameter, its gradient, or what is computed of it element by element.
        of: the parameter whose shape and cut *tensor* has, where *tensor* is a plain one.

    Returns:
        A tensor of the whole shape, on the device of *tensor*. Where every rank holds the whole
        parameter, *tensor* itself.

    Raises:
        HetmpError: a tensor that is not known to be of a sliced model, or whose shape is not that
            of this rank's share.
    """
    origin, state = _cut_of(tensor, of, "whole")
    with plain_tensors():
        if not isinstance(state, Sliced):
            return tensor
        gathered: Tensor = _Gather.apply(tensor, origin.group, state)
        return gathered


def norm(tensor: Tensor, ord: float = 2.0, *, of: Tensor | None = None) -> Tensor:
    """Compute the vector norm of the whole tensor that *tensor* is this rank's share of.

    As ``torch.linalg.vector_norm`` on the unsliced parameter. Collective where it is cut.
    Differentiable: every rank must compute the same loss from it, as from the model's output.

    Args:
        tensor: a parameter of a sliced model, its gradient, or what is computed of it element by
            element.
        ord: p of the p-norm, above 0; ``math.inf`` for the largest absolute value.
        of: the parameter whose shape and cut *tensor* has, where *tensor* is a plain one.

    Returns:
        A scalar on the device of *tensor*, the same on every rank.

    Raises:
        HetmpError: an *ord* out of range, a tensor that is not known to be of a sliced model, or
            whose shape is not that of this rank's share.
    """
    if not ord > 0:
        raise HetmpError(f"ord is above 0 (math.inf for the maximum), got {ord}")
    origin, state = _cut_of(tensor, of, "norm")
    with plain_tensors():
        if not isinstance(state, Sliced):
            own: Tensor = torch.linalg.vector_norm(tensor, ord)
            return own
        size: Tensor = _Norm.apply(tensor, ord, origin.group)
        return size


def randn_like(parameter: Tensor) -> Tensor:
    """Draw normal numbers for a whole parameter; return this rank's share of them. Collective.

    One process would have drawn them with ``torch.randn_like`` on the CPU, from rank 0's
    generator. All ranks draw the whole tensor. A rank whose generator was like rank 0's has one
    like it afterwards, that of another is left as it was.

    Args:
        parameter: of a sliced model, or its gradient.

    Returns:
        A tensor like *parameter*: its shape, dtype and device.

    Raises:
        HetmpError: a tensor that is not known to be of a sliced model.
    """
    return _drawn(torch.randn, parameter, "randn_like")


def rand_like(parameter: Tensor) -> Tensor:
    """Draw uniform numbers in [0, 1) for a whole parameter; return this rank's share. Collective.

    See ``randn_like``: arguments, result, errors and generators are the same.
    """
    return _drawn(torch.rand, parameter, "rand_like")


def _drawn(draw: Callable[..., Tensor], parameter: Tensor, who: str) -> Tensor:
    origin, state = _cut_of(parameter, None, who)
    with plain_tensors(), torch.no_grad(), generator_of_root(origin.group):
        drawn = draw(origin.shape, dtype=parameter.dtype)
        return share_of(drawn, state, origin.group.rank).to(parameter.device, copy=True)


@contextmanager
def generator_of_root(group: Group) -> Iterator[None]:
    """Draw inside as rank 0 does, from torch's CPU generator. Collective at the beginning.

    A generator that was not like rank 0's is afterwards as it was.
    """
    if group.size == 1:
        yield
        return
    state = torch.get_rng_state().numpy()
    marks = group.allgather(np.array([zlib.crc32(state.tobytes())])).ravel()
    if (marks == marks[0]).all():
        yield
        return
    roots = group.broadcast(state.copy())
    with torch.random.fork_rng(
        devices=[], enabled=not group.is_root and marks[group.rank] != marks[0]
    ):
        torch.set_rng_state(torch.from_numpy(roots))
        yield


def _cut_of(tensor: Tensor, of: Tensor | None, who: str) -> tuple[Origin, State]:
    """Return the parameter that *tensor* is a share of, and how it is cut."""
    share = share_of_tensor(tensor)
    origin = origin_of(tensor) if of is None else origin_of(of)
    if origin is None:
        raise HetmpError(
            f"hetmp.{who} takes a parameter of a sliced model, or what is computed of it element "
            f"by element; got one of shape {tuple(tensor.shape)} that is neither: take it from "
            "model.parameters()"
            + (", or name its parameter with of=" if who in ("whole", "norm") else "")
        )
    if share is not None and of is None:
        if not isinstance(share.state, Sliced) or not share.in_order:
            raise HetmpError(
                f"hetmp.{who} takes a share of {origin.name!r} whose axes are in the order of the "
                f"parameter's, got one of shape {tuple(tensor.shape)}: call it with the parameter, "
                "and change the shape of what it returns"
            )
        return origin, share.state
    wanted = share_shape(origin.shape, origin.state, origin.group.rank)
    if list(tensor.shape) != wanted:
        raise HetmpError(
            f"hetmp.{who} takes a tensor in the shape of this rank's share of {origin.name!r}, "
            f"{tuple(wanted)}, got {tuple(tensor.shape)}: give the share itself"
        )
    return origin, origin.state


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group, state: Sliced) -> Tensor:
        ctx.state, ctx.rank = state, group.rank
        return (
            Exchange(group, state, FULL, value="a whole parameter")
            .move(tensor, blocking=True)
            .wait()
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return share_of(gradient, ctx.state, ctx.rank), None, None


class _Norm(torch.autograd.Function):
    """The norm of the ranks' norms; its gradient on a share is that of torch's on the whole."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ord: float, group: Group) -> Tensor:
        own = torch.linalg.vector_norm(tensor, ord).item() if tensor.numel() else 0.0
        sizes = torch.from_numpy(group.allgather(np.array([own]), "norms of a parameter").ravel())
        size = torch.linalg.vector_norm(sizes, ord)
        largest = 0
        if math.isinf(ord):
            mine = np.array([int((tensor.abs() == size.item()).sum())])
            largest = int(group.allgather(mine, "largest values of a parameter").sum())
        ctx.ord, ctx.size, ctx.largest = ord, size.item(), largest
        ctx.save_for_backward(tensor)
        real = tensor.abs().dtype
        return size.to(tensor.device, real)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (tensor,) = ctx.saved_tensors
        if ctx.size == 0:
            return torch.zeros_like(tensor), None, None
        if math.isinf(ctx.ord):
            slope = torch.sgn(tensor) * (tensor.abs() == ctx.size) / ctx.largest
        elif ctx.ord == 2:
            slope = tensor / ctx.size
        else:
            slope = torch.sgn(tensor) * (tensor.abs() / ctx.size) ** (ctx.ord - 1)
            if ctx.ord < 1:
                slope = slope.masked_fill(tensor == 0, 0)
        return gradient * slope, None, None
