"""Files that people may edit: read as text, checked field by field, the first wrong one named."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path, nearest

Document = TypeVar("Document", bound=BaseModel)


def load(kind: type[Document], path: str | Path, what: str) -> Document:
    """Read a document from a JSON file.

    Args:
        kind: the class of the document.
        path: of the file.
        what: names the kind of file in the message.

    Raises:
        HetmpError: the file cannot be read, or an entry is wrong; names its place and the reason.
    """
    return validated(kind, read(path, what), f"{what} {path}")


def read(path: str | Path, what: str) -> str:
    """Return the text of a file.

    Raises:
        HetmpError: it cannot be read; names *what* it is, and why.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not text ({error})"
        raise HetmpError(f"{what} {path} cannot be read: {why}{near_path(path)}") from error


def validated(kind: type[Document], source: str | dict[str, Any], what: str) -> Document:
    """Return a document from its JSON or its fields.

    Args:
        kind: the class of the document.
        source: its JSON text, or its fields by name.
        what: names the source in the message.

    Raises:
        HetmpError: an entry is wrong; names *what* it is in, its place and the reason.
    """
    try:
        if isinstance(source, str):
            return kind.model_validate_json(source)
        return kind.model_validate(source)
    except ValidationError as error:
        wrong = error.errors()
        # What is misspelt is missing, too.
        misspelt = (entry for entry in wrong if entry["type"] == "extra_forbidden")
        first = next(misspelt, wrong[0])
        place = ".".join(str(part) for part in first["loc"])
        prefix = f"{place}: " if place else ""
        raise HetmpError(f"{what}: {prefix}{_in_words(kind, first)}") from error


def _in_words(kind: type[BaseModel], wrong: Mapping[str, Any]) -> str:
    """Say what is wrong with an entry, and suggest a name if one is similar."""
    cause = wrong.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):
        return str(cause)
    meant = None
    if wrong["type"] == "extra_forbidden":
        meant = nearest(str(wrong["loc"][-1]), _fields(kind))
    elif wrong["type"] == "literal_error":
        meant = nearest(str(wrong["input"]), re.findall("'([^']*)'", wrong["ctx"]["expected"]))
    return f"{wrong['msg']} (did you mean {meant!r}?)" if meant else str(wrong["msg"])


def _fields(kind: type[BaseModel]) -> set[str]:
    """Return the names of a document's entries, nested ones included."""
    names = set(kind.model_fields)
    for field in kind.model_fields.values():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _fields(part)
    return names
