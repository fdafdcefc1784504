"""The one exception that hetmp raises for what a user can mend, and how errors are told."""

import difflib
import sys
import traceback
from collections.abc import Iterable


class HetmpError(ValueError):
    """Bad input, said in words: it names the value, the limit and the remedy.

    A ``ValueError``, so that a library user who knows nothing of hetmp catches it too.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HetmpError:
    """The error for a *name* that is none of the *known* ones, with the nearest of them.

    >>> str(unknown_name("model", "vgg12", ["vgg11", "digits"]))
    "unknown model 'vgg12': did you mean 'vgg11'? (known: digits, vgg11)"
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    begun = f"unknown {kind} {name!r}" + (f": {hint}" if hint else " ")
    return HetmpError(f"{begun}(known: {', '.join(known)})")


def describe(error: BaseException) -> str:
    """An error in words; its type too where it is not one that hetmp worded."""
    if isinstance(error, HetmpError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def report(error: BaseException, prefix: str = "") -> None:
    """Print *error* on stderr, with the traceback where it is not one that hetmp worded."""
    if not isinstance(error, HetmpError):
        traceback.print_exception(error)
    sys.stderr.write(f"hetmp: error: {prefix}{describe(error)}\n")
    sys.stderr.flush()
