"""Suggestions for names and paths that do not exist."""

import difflib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from hetmp.core.errors import HetmpError

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
"""hetmp's names, by common other names."""


_MOST_FILES = 10_000
"""The most files of a folder that are compared with a missing name."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the *known* name most like *name*; None if none is similar.

    Args:
        cutoff: the least similarity, from 0 to 1 (as ``difflib.get_close_matches``).

    >>> nearest("gpu", ["auto", "cpu", "cuda"])
    'cuda'
    >>> nearest("AdamW ", ["adam", "adamw"])
    'adamw'
    """
    known = list(known)
    plain = name.strip().lower()
    if MEANT.get(plain) in known:
        return MEANT[plain]
    matches = difflib.get_close_matches(plain, known, n=1, cutoff=cutoff)
    return next(iter(matches or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HetmpError:
    """Return the error for a *name* that is not *known*; it suggests the nearest one.

    Args:
        kind: names the kind of thing in the message.

    >>> str(unknown_name("model", "vgg12", ["vgg11", "digits"]))
    "unknown model 'vgg12': did you mean 'vgg11'? (known: digits, vgg11)"
    """
    known = sorted(known)
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    begun = f"unknown {kind} {name!r}" + (f": {hint}" if hint else " ")
    return HetmpError(f"{begun}(known: {', '.join(known)})")


def near_path(path: str | Path) -> str:
    """Return `` (did you mean runs/demo?)`` for a missing *path*; empty if none is similar."""
    path = missing = Path(path)
    while not os.path.isdir(missing.parent):  # Path.is_dir raises where it may not look
        missing = missing.parent
    try:
        names = [entry.name for entry in itertools.islice(os.scandir(missing.parent), _MOST_FILES)]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.7)
    if not near or missing.name in names:
        return ""
    sibling = missing.with_name(near[0])
    whole = sibling / path.relative_to(missing)
    return f" (did you mean {whole if os.path.exists(whole) else sibling}?)"
