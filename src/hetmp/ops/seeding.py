"""Random numbers of what every rank computes whole: the same on all ranks.

Every operation draws from generators that are seeded with the key of the forward pass and the
operation's name. From one seed, torch draws other numbers on a CPU than on a GPU, on GPUs of two
kinds, and for bfloat16 than for float32. Where the ranks are unlike in any of these, all is drawn
on the CPU in float32, in row-major order, and copied to where it is needed.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode


class Seeds:
    """The random numbers of one forward pass.

    Args:
        key: the same on all ranks.
        on_cpu: whether all is drawn on the CPU, because the ranks are unlike.
        before: state of torch's CPU generator before the key was drawn, to go back to where no
            operation draws; None where the key counts as drawn.
    """

    def __init__(self, key: int, on_cpu: bool = False, before: Tensor | None = None) -> None:
        self._key, self._on_cpu, self._before = key, on_cpu, before
        self._drew = False

    @contextmanager
    def seeded(
        self, name: str, device: torch.device, callee: Callable[..., Any], own: bool
    ) -> Iterator[None]:
        """Seed the generators with (key, *name*) inside, and restore them afterwards.

        Args:
            name: of the step.
            device: of its operands.
            callee: the layer or function that is called inside.
            own: whether that is a user's own code, which may draw from Python's and NumPy's
                generators, too.
        """
        gpus = [device] if device.type == "cuda" else []
        seed = zlib.crc32(f"{self._key} {name}".encode())
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(gpus))
            torch.manual_seed(seed)
            if own:
                stack.enter_context(_pythons_seeded(seed))
            if self._on_cpu:
                _draw_on_cpu(stack, callee)
            fresh = None if self._before is None or self._drew else _states(gpus, own)
            yield
            self._drew = self._drew or (fresh is not None and fresh != _states(gpus, own))

    def close(self) -> None:
        """Take the key back if nothing was drawn with it."""
        if self._before is not None and not self._drew:
            torch.set_rng_state(self._before)


def _states(gpus: list[torch.device], own: bool) -> list[Any]:
    """Return the states of the generators that an operation may draw from."""
    states: list[Any] = [torch.get_rng_state().numpy().tobytes()]
    states += [torch.cuda.get_rng_state(gpu).numpy().tobytes() for gpu in gpus]
    if own:
        _, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002 - the user's choice
        states += [random.getstate(), list(keys), position]
    return states


@contextmanager
def _pythons_seeded(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's own generators inside, and restore them afterwards."""
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's choice
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002


def _draw_on_cpu(stack: ExitStack, callee: Callable[..., Any]) -> None:
    """Draw everything on the CPU until *stack* ends."""
    # Fused attention and cuDNN's recurrent layers draw inside of their kernels.
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    parts = callee.modules() if isinstance(callee, nn.Module) else ()
    if any(isinstance(part, nn.RNNBase) and part.dropout > 0 for part in parts):
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
    stack.enter_context(_DrawingOnCpu())


# --- one operation of torch's -------------------------------------------------------------------

_NOT_TAGGED = ("aten::random", "aten::random_", "aten::binomial", "aten::_sample_dirichlet")
"""Operations that draw, and that torch does not mark."""

_RRELU = ("aten::rrelu_with_noise", "aten::rrelu_with_noise_")

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""The dtype in which numbers of another are drawn."""


class _DrawingOnCpu(TorchDispatchMode):
    """Every operation that draws random numbers does so on the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
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


def _on_cpu(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call *func* on copies in the CPU's memory, and copy back what it gives and changes."""
    written: dict[int, Tensor] = {}  # the originals of copies that *func* writes to
    kept: list[Tensor] = []

    def copied(argument: Any, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [copied(argument, item) for item in value]
        if argument.name == "dtype":
            return _WIDE.get(value, value)
        if argument.name == "device":
            return torch.device("cpu")
        if argument.name == "memory_format":
            return torch.contiguous_format
        if argument.name == "pin_memory":
            return False
        if not isinstance(value, Tensor):
            return value
        kept.append(value)
        dtype = _WIDE.get(value.dtype, value.dtype)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if not (writes or func._schema.name.endswith("_like")):
            return value.to("cpu", dtype).contiguous()
        blank = torch.empty(value.shape, dtype=dtype, device="cpu")  # what it holds does not count
        if writes:
            written[id(blank)] = value
            kept.append(blank)
        return blank

    arguments = {argument.name: argument for argument in func._schema.arguments}
    positional = [
        copied(argument, value) for argument, value in zip(arguments.values(), args, strict=False)
    ]
    named = {name: copied(arguments[name], value) for name, value in kwargs.items()}
    result = func(*positional, **named)
    for copy in kept:
        if id(copy) in written:
            written[id(copy)].copy_(copy)
    like = kept[0] if kept else None

    def moved(item: Any) -> Any:
        if isinstance(item, list | tuple):
            return type(item)(moved(part) for part in item)
        if not isinstance(item, Tensor):
            return item
        if id(item) in written:
            return written[id(item)]
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        if like is not None:
            device, dtype = device or like.device, dtype or like.dtype
        return item.to(device or item.device, (item.is_floating_point() and dtype) or item.dtype)

    return moved(result)


def _rrelu(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Draw a slope for every element: torch draws for negative ones, which rounding may change."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    named |= kwargs
    if not named.get("training", False):
        return func(*args, **kwargs)
    x, noise = named["self"], named["noise"]
    slopes = torch.empty(x.shape, dtype=_WIDE.get(x.dtype, x.dtype), device="cpu")
    slopes.uniform_(named.get("lower", 1 / 8), named.get("upper", 1 / 3))
    noise.copy_(torch.where(x <= 0, slopes.to(x.device, x.dtype), 1))
    return x.mul_(noise) if func._schema.name.endswith("_") else x * noise
