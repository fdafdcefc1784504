"""Exceptions whose messages are complete sentences, and the exit codes they lead to."""

import errno
import os

FAILED, BAD_INPUT = 1, 2
"""Exit codes: docs/commands.md has all of them."""


_OF_PATHS = {errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""System errors that mean that a path cannot be used."""

_OF_DISKS = {errno.EDQUOT, errno.EIO, errno.ENOSPC}
"""System errors of the disk, which are not the input's fault."""

GRACE_SECONDS = 3.0
"""Default of ``grace_seconds``."""


def grace_seconds() -> float:
    """Return how long a failing rank waits for the others to fail, too, before the job ends.

    ``HETMP_GRACE_SECONDS`` sets it; other values than numbers from 0 to 3600 are ignored.
    """
    try:
        seconds = float(os.environ.get("HETMP_GRACE_SECONDS", ""))
    except ValueError:
        return GRACE_SECONDS
    return seconds if 0 <= seconds <= 3600 else GRACE_SECONDS


class HetmpError(ValueError):
    """Bad input; the message names the value, the limit and the remedy.

    A ``ValueError``, so that library users catch it without knowing hetmp.

    Attributes:
        exit_code: of the program, when this error ends it.
    """

    exit_code = BAD_INPUT


class FailedError(HetmpError):
    """A failure that is not the input's fault: no room on the disk, a loss that is not finite."""

    exit_code = FAILED


def exit_code(error: BaseException) -> int:
    """Return the exit code for *error*."""
    if isinstance(error, HetmpError):
        return error.exit_code
    return BAD_INPUT if isinstance(error, OSError) and error.errno in _OF_PATHS else FAILED


def says_enough(error: BaseException) -> bool:
    """Return whether *error* is a system error that a traceback would not explain any better."""
    return isinstance(error, OSError) and error.errno in _OF_PATHS | _OF_DISKS


def describe(error: BaseException) -> str:
    """Return the message of *error*, with its type unless hetmp or the system worded it."""
    if isinstance(error, HetmpError):
        return str(error)
    if isinstance(error, OSError) and says_enough(error):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    return f"{type(error).__name__}: {error}"
