"""Shares of tensors that know what they are shares of: parameters, and what is computed of them.

torch asks the class of an operand (``__torch_function__``) before it computes. Inside of
``plain_tensors``, where all of hetmp's own work is done, it does not ask.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hetmp.cluster import Group
from hetmp.core.state import Partial, Sliced, State
from hetmp.exchange import plain_tensors
from hetmp.slicing.table import Table


@dataclass(frozen=True, eq=False)
class Origin:
    """The parameter of the unsliced module that a tensor is, or is computed of.

    Attributes:
        name: of the parameter.
        shape: of the whole parameter.
        state: how it lies over the ranks of *group*.
        group: the ranks that share it.
    """

    name: str
    shape: torch.Size
    state: State
    group: Group

    def __deepcopy__(self, memo: dict[int, object]) -> "Origin":
        return self


class Share(NamedTuple):
    """What a tensor on this rank is a share of.

    Attributes:
        origin: the parameter.
        state: sliced along an axis of the tensor, or ``PARTIAL``: a summand, as a sum over a
            share is.
        title: what it is, for the reader.
        in_order: whether the indices of the cut axis are those of the parameter's.
    """

    origin: Origin
    state: Sliced | Partial
    title: str
    in_order: bool = True


Handler = Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]
"""What is done in the place of a function: (function, arguments, keyword arguments) -> result."""

_handlers: dict[Callable[..., Any], Handler] = {}

_replicated: "dict[int, tuple[weakref.ref[Tensor], Origin]]" = {}
"""id -> parameter and what it is, of those that every rank holds whole; they are plain ones."""


def _ask(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
    if func is Tensor.backward:  # not as a plain tensor: the user's hooks are called within
        with plain_tensors():
            loss = args[0].as_subclass(Tensor)
        return func(loss, *args[1:], **(kwargs or {}))
    handler = _handlers.get(func)
    if handler is None:
        from hetmp.slicing.shares.follow import handler_for  # it needs the classes below

        handler = _handlers[func] = handler_for(func)
    with plain_tensors():
        return handler(func, args, kwargs or {})


@classmethod  # type: ignore[misc]  # of both classes below
def _followed(
    cls: type,
    func: Callable[..., Any],
    types: Iterable[type],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    return _ask(func, args, kwargs)


class CutTensor(Tensor):
    """A share of what is computed of a cut parameter, or its gradient."""

    hetmp_share: Share

    __torch_function__ = _followed

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with plain_tensors():  # torch copies a tensor of a subclass by what it makes of it
                plain = self.detach() if self.is_leaf else self.as_subclass(Tensor)
                copied: Tensor = copy.deepcopy(plain, memo).requires_grad_(self.requires_grad)
                copied.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = as_share(copied, self.hetmp_share)
        shared: Tensor = memo[id(self)]
        return shared

    def __reduce_ex__(self, protocol: Any) -> Any:
        with plain_tensors():
            plain = self.as_subclass(Tensor) if self.grad_fn else self.detach()
            return plain.requires_grad_(self.requires_grad).__reduce_ex__(protocol)


class CutParameter(nn.Parameter):
    """This rank's share of a parameter that is cut over the ranks of a sliced model."""

    hetmp_share: Share

    __torch_function__ = _followed

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) not in memo:
            with plain_tensors():
                values = self.detach().clone(memory_format=torch.preserve_format)
                copied = nn.Parameter(values, self.requires_grad)
            memo[id(self)] = _of_class(copied, CutParameter, self.hetmp_share)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Give a plain parameter: what is written to a file knows nothing of ranks."""
        with plain_tensors():
            return nn.Parameter(self.detach(), self.requires_grad).__reduce_ex__(protocol)


def _of_class(tensor: Any, kind: type, share: Share) -> Any:
    # As torch does where a lazy parameter becomes one; a new tensor would have other hooks.
    tensor.__class__ = kind
    tensor.hetmp_share = share
    return tensor


def as_share(tensor: Tensor, share: Share) -> Tensor:
    """Make *tensor*, a plain one, know that it is a *share*, and return it."""
    if type(tensor) is Tensor:
        _of_class(tensor, CutTensor, share)
    return tensor


def share_of_tensor(tensor: object) -> Share | None:
    """Return what a tensor is a share of, or None."""
    return tensor.hetmp_share if isinstance(tensor, CutTensor | CutParameter) else None


def origin_of(tensor: Tensor) -> Origin | None:
    """Return the parameter of a sliced model that *tensor* is, or is computed of, or None."""
    share = share_of_tensor(tensor)
    if share is not None:
        return share.origin
    known, origin = _replicated.get(id(tensor), (None, None))
    return origin if known is not None and known() is tensor else None


def label(model: nn.Module, table: Table, group: Group) -> None:
    """Make every parameter of *model* know which one it is, and what of it this rank holds.

    *table* says so. Those that are cut over the ranks of *group* become ``CutParameter``.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        entry = table.get(name)
        if entry is None or parameter.shape.numel() > entry.shape.numel():
            continue
        name = entry.alias_of or name
        origin = Origin(name, entry.shape, entry.state, group)
        if isinstance(entry.state, Sliced) and group.size > 1:
            _of_class(parameter, CutParameter, Share(origin, entry.state, repr(name)))
        else:
            reference: weakref.ref[Tensor] = weakref.ref(parameter, partial(_forget, id(parameter)))
            _replicated[id(parameter)] = reference, origin


def _forget(key: int, reference: object) -> None:
    _replicated.pop(key, None)
