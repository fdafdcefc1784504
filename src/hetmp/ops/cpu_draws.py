"""Random numbers of torch's operations that are drawn on the CPU, whatever device needs them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

_NOT_TAGGED = ("aten::random", "aten::random_", "aten::binomial", "aten::_sample_dirichlet")
"""Operations that draw, and that torch does not mark."""

_RRELU = ("aten::rrelu_with_noise", "aten::rrelu_with_noise_")

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""The dtype in which numbers of another are drawn."""


class DrawingOnCpu(TorchDispatchMode):
    """Inside, every operation that draws random numbers does so on the CPU.

    In float32 instead of 16 bits, and in row-major order. Autograd sees the operation as it is.
    """

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs, title = kwargs or {}, func._schema.name
        marked = torch.Tag.nondeterministic_seeded in func.tags
        generator = kwargs.get("generator")
        if not (marked or title in _NOT_TAGGED) or generator is not None:
            return func(*args, **kwargs)  # a generator of the user's own is the user's to seed
        if title in _RRELU:
            return _rrelu(func, args, kwargs)
        try:
            return _on_cpu(func, args, kwargs)
        except NotImplementedError:
            return func(*args, **kwargs)  # there is none for the CPU


def _on_cpu(func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Call *func* on copies in the CPU's memory, and copy back what it gives and changes."""
    written: dict[int, Tensor] = {}  # the originals of copies that *func* writes to
    operands: list[Tensor] = []

    def copied(argument: torch.Argument, value: object) -> object:
        if isinstance(value, list | tuple):
            return [copied(argument, item) for item in value]
        if argument.name == "dtype" and isinstance(value, torch.dtype):
            return _WIDE.get(value, value)
        if argument.name == "device":
            return torch.device("cpu")
        if argument.name == "memory_format":
            return torch.contiguous_format
        if argument.name == "pin_memory":
            return False
        if not isinstance(value, Tensor):
            return value
        operands.append(value)
        dtype = _WIDE.get(value.dtype, value.dtype)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if not (writes or func._schema.name.endswith("_like")):
            return value.to("cpu", dtype).contiguous()
        blank = torch.empty(value.shape, dtype=dtype, device="cpu")  # what it holds does not count
        if writes:
            written[id(blank)] = value
            operands.append(blank)
        return blank

    arguments = {argument.name: argument for argument in func._schema.arguments}
    positional = [
        copied(argument, value) for argument, value in zip(arguments.values(), args, strict=False)
    ]
    named = {name: copied(arguments[name], value) for name, value in kwargs.items()}
    result = func(*positional, **named)
    for copy in operands:
        if id(copy) in written:
            written[id(copy)].copy_(copy)
    like = operands[0] if operands else None

    def moved(item: object) -> object:
        if isinstance(item, list | tuple):
            return type(item)(moved(part) for part in item)
        if not isinstance(item, Tensor):
            return item
        if id(item) in written:
            return written[id(item)]
        device: Any = kwargs.get("device")
        dtype: Any = kwargs.get("dtype")
        if like is not None:
            device, dtype = device or like.device, dtype or like.dtype
        return item.to(device or item.device, (item.is_floating_point() and dtype) or item.dtype)

    return moved(result)


def _rrelu(func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Draw a slope for every element: torch draws for negative ones, which rounding may change."""
    names = (argument.name for argument in func._schema.arguments)
    named: dict[str, Any] = dict(zip(names, args, strict=False))
    named |= kwargs
    if not named.get("training", False):
        return func(*args, **kwargs)
    x, noise = named["self"], named["noise"]
    slopes = torch.empty(x.shape, dtype=_WIDE.get(x.dtype, x.dtype), device="cpu")
    slopes.uniform_(named.get("lower", 1 / 8), named.get("upper", 1 / 3))
    noise.copy_(torch.where(x <= 0, slopes.to(x.device, x.dtype), 1))
    return x.mul_(noise) if func._schema.name.endswith("_") else x * noise
