"""Report errors on stderr, with the warnings that were held back until then."""

import sys
import traceback
import warnings
from typing import Any

from hetmp.core.errors import HetmpError, describe, says_enough

_held: list[str] = []
"""Warnings held back until the run succeeds or fails."""


def hold_warnings(rank: int) -> None:
    """Hold Python's warnings back for `report`, because rank 0 shows the same ones.

    With ``PYTHONWARNINGS`` or ``python -W`` each rank shows its own at once instead.

    Args:
        rank: of this process, named in each warning.
    """

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any
    ) -> None:
        text = f"rank {rank}: {warnings.formatwarning(message, category, filename, lineno)}"
        if sys.warnoptions:
            sys.stderr.write(text)
        else:
            _held.append(text)

    warnings.showwarning = show  # type: ignore[assignment]


def report(error: BaseException, prefix: str = "", trace: bool = True) -> None:
    """Print *error* on stderr, with a traceback where it helps to find the place.

    Written in one piece, so that the messages of several ranks do not mix. If the reader of stdout
    is gone (``| head``), nothing is printed.

    Args:
        prefix: goes before the message.
        trace: whether to print the traceback; else only the file and line.
    """
    if isinstance(error, BrokenPipeError):
        return
    before, place = "", ""
    if not isinstance(error, HetmpError) and not says_enough(error):
        frames = traceback.extract_tb(error.__traceback__)
        if trace:
            before = "".join(traceback.format_exception(error))
        elif frames:
            place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    warned = "".join(_held)
    sys.stderr.write(f"{warned}{before}hetmp: error: {prefix}{describe(error)}{place}\n")
    sys.stderr.flush()
