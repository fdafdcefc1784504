"""The exceptions that hetmp raises in words, and how the program ends with them."""

import errno
import os

FAILED, BAD_INPUT = 1, 2
"""How the program ends: docs/commands.md has all the codes."""


_OF_PATHS = {errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""Errors of the system that say that a path cannot be used."""

_OF_DISKS = {errno.EDQUOT, errno.EIO, errno.ENOSPC}
"""Errors of the system that are nobody's fault."""

GRACE_SECONDS = 3.0
"""How long ranks wait for each other's words before a job ends: see ``grace_seconds``."""


def grace_seconds() -> float:
    """Return how long a rank that fails gives the others to say so, too, before the job ends.

    ``HETMP_GRACE_SECONDS`` sets it; what is not a number from 0 to 3600 counts as the default.
    """
    try:
        seconds = float(os.environ.get("HETMP_GRACE_SECONDS", ""))
    except ValueError:
        return GRACE_SECONDS
    return seconds if 0 <= seconds <= 3600 else GRACE_SECONDS


class HetmpError(ValueError):
    """Bad input, said in words: it names the value, the limit and the remedy.

    A ``ValueError``, so that a library user who knows nothing of hetmp catches it too.

    Attributes:
        exit_code: how the program ends with it.
    """

    exit_code = BAD_INPUT


class FailedError(HetmpError):
    """What was told could be used, and it failed all the same: no room, a loss that is no number.

    Said in words, too.
    """

    exit_code = FAILED


def exit_code(error: BaseException) -> int:
    """How the program ends with *error*."""
    if isinstance(error, HetmpError):
        return error.exit_code
    return BAD_INPUT if isinstance(error, OSError) and error.errno in _OF_PATHS else FAILED


def says_enough(error: BaseException) -> bool:
    """Whether it is an error of the system that no line of code explains any better."""
    return isinstance(error, OSError) and error.errno in _OF_PATHS | _OF_DISKS


def describe(error: BaseException) -> str:
    """An error in words; its type too where it is not one that hetmp worded."""
    if isinstance(error, HetmpError):
        return str(error)
    if isinstance(error, OSError) and says_enough(error):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    return f"{type(error).__name__}: {error}"
