"""The exceptions that hetmp raises in words, how they are told, and what was meant instead."""

import difflib
import errno
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FAILED, BAD_INPUT = 1, 2
"""How the program ends: docs/commands.md has all the codes."""

MEANT = {
    "gpu": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "single": "float32",
    "fp64": "float64",
    "double": "float64",
}
"""What hetmp calls things, by what others call them."""

_OF_PATHS = {errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EROFS}
"""Errors of the system that say that a path cannot be used, which was told."""

_OF_DISKS = {errno.EDQUOT, errno.EIO, errno.ENOSPC}
"""Errors of the system that are nobody's fault."""

GRACE_SECONDS = 3.0
"""How long ranks wait for each other's words before a job ends: see ``grace_seconds``."""

_held: list[str] = []
"""What this process was warned of and has not told."""

_MOST_FILES = 10_000
"""In how many files of a folder one is looked for that may have been meant."""


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


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of the *known* names that *name* was meant to be; None if it is like none.

    >>> nearest("gpu", ["auto", "cpu", "cuda"])
    'cuda'
    >>> nearest("AdamW ", ["adam", "adamw"])
    'adamw'
    """
    known = list(known)
    plain = name.strip().lower()
    if MEANT.get(plain) in known:
        return MEANT[plain]
    found = difflib.get_close_matches(plain, known, n=1, cutoff=cutoff)
    return next(iter(found or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HetmpError:
    """The error for a *name* that is none of the *known* ones, with the nearest of them.

    >>> str(unknown_name("model", "vgg12", ["vgg11", "digits"]))
    "unknown model 'vgg12': did you mean 'vgg11'? (known: digits, vgg11)"
    """
    known = sorted(known)
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    begun = f"unknown {kind} {name!r}" + (f": {hint}" if hint else " ")
    return HetmpError(f"{begun}(known: {', '.join(known)})")


def near_path(path: str | Path) -> str:
    """`` (did you mean runs/demo?)`` for a *path* that is not there, if there is one like it."""
    path = missing = Path(path)
    while not os.path.isdir(missing.parent):  # Path.is_dir raises where it may not look
        missing = missing.parent
    try:
        names = [one.name for one in itertools.islice(os.scandir(missing.parent), _MOST_FILES)]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.7)
    if not near or missing.name in names:
        return ""
    found = missing.with_name(near[0])
    whole = found / path.relative_to(missing)
    return f" (did you mean {whole if os.path.exists(whole) else found}?)"


def _says_enough(error: BaseException) -> bool:
    """Whether it is an error of the system that no line of code explains any better."""
    return isinstance(error, OSError) and error.errno in _OF_PATHS | _OF_DISKS


def describe(error: BaseException) -> str:
    """An error in words; its type too where it is not one that hetmp worded."""
    if isinstance(error, HetmpError):
        return str(error)
    if isinstance(error, OSError) and _says_enough(error):
        place = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{place}"
    return f"{type(error).__name__}: {error}"


def hold_warnings(rank: int) -> None:
    """Keep Python's warnings for `report`, on a *rank* that is silent: rank 0 shows the same ones.

    Where warnings were asked for (``PYTHONWARNINGS``, ``python -W``) each rank shows its own.
    """

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        told = f"rank {rank}: {warnings.formatwarning(message, category, filename, lineno)}"
        if sys.warnoptions:
            sys.stderr.write(told)
        else:
            _held.append(told)

    warnings.showwarning = show  # type: ignore[assignment]


def report(error: BaseException, prefix: str = "", trace: bool = True) -> None:
    """Print *error* on stderr, with the traceback where that says where to look.

    In one piece: what several ranks say does not mix. Of a reader of the output that has gone
    (``| head``) there is nobody to tell.

    Args:
        trace: else the place in a few words, on ranks that may all say the same.
    """
    if isinstance(error, BrokenPipeError):
        return
    before, place = "", ""
    if not isinstance(error, HetmpError) and not _says_enough(error):
        frames = traceback.extract_tb(error.__traceback__)
        if trace:
            before = "".join(traceback.format_exception(error))
        elif frames:
            place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    warned = "".join(_held)
    sys.stderr.write(f"{warned}{before}hetmp: error: {prefix}{describe(error)}{place}\n")
    sys.stderr.flush()
