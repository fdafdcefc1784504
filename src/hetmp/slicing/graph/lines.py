"""Which line of the user's own a module runs, for messages and for questions to be noticed."""

import os
import re
import sys
from types import FrameType
from typing import Any

import torch

_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
"""Folders whose lines are not the user's."""


def is_users(function: Any) -> bool:
    """Return whether *function* is written in Python by neither torch nor hetmp."""
    code = getattr(function, "__code__", None)
    return code is not None and not code.co_filename.startswith(_LIBRARIES)


def is_library(frame: FrameType) -> bool:
    """Return whether a line of torch's or hetmp's runs in *frame*."""
    return frame.f_code.co_filename.startswith(_LIBRARIES)


def users_frame() -> str | None:
    """Return the innermost line of the user's that a forward pass runs, as stack traces print it.

    None where none does.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    users = frame
    while frame is not None and frame.f_code.co_name != "forward":
        frame = frame.f_back
    if users is None or frame is None:
        return None
    return f'File "{users.f_code.co_filename}", line {users.f_lineno}'


def users_line(stack: str) -> str:
    """Return the innermost line of the user's in a stack trace as Python prints it."""
    frames = re.findall(r'File "(.+)", line (\d+)', stack)
    users = [(file, line) for file, line in frames if not file.startswith(_LIBRARIES)]
    return "{}:{}".format(*users[-1]) if users else ""
