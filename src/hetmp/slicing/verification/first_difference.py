"""The first operation whose value the module itself does not have."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hetmp.slicing.verification.differences import leaves


class CallRecorder(TorchFunctionMode):
    """Records every call of a torch function inside: where it was, and a mark of each result.

    Args:
        place: returns a name for the place of the current call.
    """

    def __init__(self, place: Callable[[str], str]) -> None:
        super().__init__()
        self._place = place
        self.calls: list[tuple[str, int]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name != "__get__":
            self.calls += [
                (self._place(name), _mark(value))
                for _, value in leaves(result)
                if isinstance(value, Tensor)
            ]
        return result


def first_foreign(calls: CallRecorder, others: CallRecorder) -> str | None:
    """Return the place of the first call whose result is not among those of the *others*."""
    known = {mark for _, mark in others.calls}
    return next((place for place, mark in calls.calls if mark not in known), None)


def _mark(value: Tensor) -> int:
    plain = value.detach().to("cpu").contiguous()
    content = plain.reshape(-1).view(torch.uint8) if plain.numel() else plain.new_empty(0)
    return zlib.crc32(f"{plain.dtype} {tuple(plain.shape)}".encode(), _crc(content))


def _crc(content: Tensor) -> int:
    return zlib.crc32(content.numpy().tobytes()) if content.numel() else 0
