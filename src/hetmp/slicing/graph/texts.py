"""Sizes that become text while a module is traced: ``Texts``.

A text may be looked up or compared, so a size in it is confirmed in every pass, like one that the
module branches on. What only says why an assertion fails decides nothing.
"""

from collections.abc import Iterator
from typing import Any

from torch import fx

from hetmp.slicing.graph.lines import innermost_users_frame, writes_message


class Texts:
    """The texts that a trace made of sizes, in order."""

    def __init__(self) -> None:
        self._made: list[tuple[str, fx.Proxy, str]] = []

    def add(self, size: fx.Proxy, text: str) -> None:
        """Note that *size* was written as *text*."""
        frame = innermost_users_frame()
        if frame is not None and writes_message(frame):
            return
        line = "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self._made.append((text, size, line))

    def forget(self, message: object) -> None:
        """Drop the latest texts, as far as they are in an assertion's *message*."""
        while self._made and self._made[-1][0] in str(message):
            self._made.pop()

    def decisive(self) -> Iterator[tuple[Any, str]]:
        """Yield (size, the user's line) of every text that the module may depend on."""
        return ((size, line) for _, size, line in self._made)
