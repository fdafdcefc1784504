"""Which layers follow which scheme, as a user says it: in a word, or in a file."""

import json
import re
from pathlib import Path

from hetmp.core.documents import read
from hetmp.core.errors import HetmpError

WORDS = "filters, batch or batch:K"
"""What may be said in a word, for messages."""

_WORD = re.compile(r"filters|batch(:[0-9]+)?")


def is_word(text: str) -> bool:
    """Return whether *text* says the schemes in a word: one of ``WORDS``."""
    return _WORD.fullmatch(text) is not None


def read_schemes(path: str | Path) -> dict[str, str]:
    """Read a JSON file of the schemes of some layers, by the layers' paths.

    Raises:
        HetmpError: it cannot be read, or is something else: an example of what it should be.
    """
    text, what = read(path, "schemes file"), f"schemes file {path}"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise HetmpError(f"{what} is not JSON: {error}") from error
    if isinstance(content, dict) and "format" in content:
        raise HetmpError(f"{what} is a {content['format']!r} file: a plan is given with --plan")
    named = isinstance(content, dict) and all(isinstance(v, str) for v in content.values())
    if not named:
        raise HetmpError(
            f'{what} must name schemes by layer, such as {{"features.conv1": "batch"}}'
        )
    return dict(content)
