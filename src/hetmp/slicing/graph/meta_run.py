"""One operation on the meta device, for the shapes of its results, without computing."""

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from hetmp.ops import rule_for


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Restore the modes of *module* and its parts on leaving the context."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def without_data() -> Iterator[None]:
    """Make new tensors inside the context without data: shapes only."""
    with torch.device("meta"), torch.inference_mode(mode=False), torch.no_grad():
        yield


def on_meta(item: object) -> Any:
    """Return a tensor without its data; anything else unchanged."""
    return item.to("meta") if isinstance(item, Tensor) else item


def run_layer(layer: nn.Module, args: Any, kwargs: Mapping[str, object]) -> object:
    """Run *layer* in evaluation mode: in training, batch norm refuses one value per channel.

    A layer without a rule may remember how often it ran: a copy of it runs. If it looks at values,
    it is run on made-up ones.
    """
    if _keeps_shape(layer, args, kwargs):
        return torch.empty_like(args[0])
    if rule_for(layer) is None:
        tensors = (*layer.parameters(), *layer.buffers())
        layer = copy.deepcopy(layer, {id(tensor): tensor for tensor in tensors})
    with modes_kept(layer):
        layer.eval()
        try:
            return layer(*args, **kwargs)
        except Exception:
            if rule_for(layer) is not None:
                raise
            return _run_on_numbers(layer, args, kwargs)


def _keeps_shape(layer: nn.Module, args: Any, kwargs: Mapping[str, object]) -> bool:
    """Return whether *layer*'s output is known without a run, which takes milliseconds."""
    rule = rule_for(layer)
    if rule is None or not rule.keeps_shape or kwargs or len(args) != 1:
        return False
    x, dims = args[0], rule.input_dims(layer)
    if not isinstance(x, Tensor) or dims not in (None, x.dim()) or x.dim() < 2:
        return False
    return rule.input_channels(layer) in (None, x.shape[rule.channel_axis(layer, x.dim())])


def run_method(name: str, args: Any, kwargs: Mapping[str, object]) -> object:
    """Call a tensor's method."""
    try:
        return getattr(args[0], name)(*args[1:], **kwargs)
    except NotImplementedError:
        if name not in ("cpu", "cuda", "to"):
            raise
        # There is no data to copy to another device.
        dtypes = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]
        return args[0].to(*dtypes[:1]) if dtypes else args[0]


def _run_on_numbers(layer: nn.Module, args: Any, kwargs: Any) -> object:
    """Run a layer that looks at values on made-up tensors and operands."""

    def numbers(item: object) -> Any:
        return torch.rand(item.shape).to(item.dtype) if isinstance(item, Tensor) else item

    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        memo: dict[int, object] = {
            id(p): nn.Parameter(numbers(p), False) for p in layer.parameters()
        }
        memo |= {id(buffer): numbers(buffer) for buffer in layer.buffers()}
        args, kwargs = (fx.node.map_aggregate(part, numbers) for part in (args, kwargs))
        result = copy.deepcopy(layer, memo)(*args, **kwargs)
    return fx.node.map_aggregate(result, on_meta)


def attribute(module: nn.Module, path: str) -> Any:
    """Return the attribute at a dotted path in *module*."""
    return functools.reduce(getattr, path.split("."), module)
