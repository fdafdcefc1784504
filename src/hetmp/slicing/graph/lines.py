"""Which line of the user's own a module runs, for messages and for questions to be noticed."""

import ast
import functools
import linecache
import re
import sys
from types import FrameType

from hetmp.core.users_code import is_users_file


def is_users(function: object) -> bool:
    """Return whether *function* is written in Python by neither torch nor hetmp."""
    code = getattr(function, "__code__", None)
    return code is not None and is_users_file(code.co_filename)


_MESSAGES = ("assert", "check", "debug", "error", "info", "log", "print", "raise", "warn")
"""What the name of a function contains whose text is read by people only."""


def writes_message(frame: FrameType) -> bool:
    """Return whether the statement that runs in *frame* only makes a text for people."""
    line = frame.f_lineno
    return any(first <= line <= last for first, last in _messages(frame.f_code.co_filename))


@functools.lru_cache(maxsize=64)
def _messages(file: str) -> tuple[tuple[int, int], ...]:
    """Return the first and last lines of the statements of a *file* that raise, assert or print."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise | ast.Assert)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _prints(node.value))
    )


def _prints(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", "")).lower()
    return any(part in name for part in _MESSAGES)


def is_library(frame: FrameType) -> bool:
    """Return whether a line of torch's or hetmp's runs in *frame*."""
    return not is_users_file(frame.f_code.co_filename)


def innermost_users_frame() -> FrameType | None:
    """Return the innermost frame in which a line of the user's runs; None where none does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_library(frame):
        frame = frame.f_back
    return frame


def users_frame() -> str | None:
    """Return the innermost line of the user's that a forward pass runs, as stack traces print it.

    None where none does.
    """
    users = frame = innermost_users_frame()
    while frame is not None and frame.f_code.co_name != "forward":
        frame = frame.f_back
    if users is None or frame is None:
        return None
    return f'File "{users.f_code.co_filename}", line {users.f_lineno}'


def users_line(stack: str) -> str:
    """Return the innermost line of the user's in a stack trace as Python prints it."""
    frames = re.findall(r'File "(.+)", line (\d+)', stack)
    users = [(file, line) for file, line in frames if is_users_file(file)]
    return "{}:{}".format(*users[-1]) if users else ""


def at_line(stack: str | None) -> str:
    """Return `` at FILE:LINE`` for the innermost line of the user's in a *stack*; or nothing."""
    line = users_line(stack or "")
    return f" at {line}" if line else ""
