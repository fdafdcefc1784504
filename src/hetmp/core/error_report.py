"""Tell a person of an error, and of warnings held back until then."""

import sys
import traceback
import warnings
from typing import Any

from hetmp.core.errors import HetmpError, describe, says_enough

_held: list[str] = []
"""What this process was warned of and has not told."""


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
    if not isinstance(error, HetmpError) and not says_enough(error):
        frames = traceback.extract_tb(error.__traceback__)
        if trace:
            before = "".join(traceback.format_exception(error))
        elif frames:
            place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
    warned = "".join(_held)
    sys.stderr.write(f"{warned}{before}hetmp: error: {prefix}{describe(error)}{place}\n")
    sys.stderr.flush()
