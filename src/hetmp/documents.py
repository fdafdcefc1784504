"""Files that people may edit: read as text, checked field by field, the first wrong one named."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hetmp.errors import HetmpError

Document = TypeVar("Document", bound=BaseModel)


def load(kind: type[Document], path: str | Path, what: str) -> Document:
    """A document from a JSON file.

    Raises:
        HetmpError: the file cannot be read, or an entry is wrong: its place and the reason.
    """
    return validated(kind, read(path, what), f"{what} {path}")


def read(path: str | Path, what: str) -> str:
    """The text of a file.

    Raises:
        HetmpError: it cannot be read; *what* it is, and why.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HetmpError(f"{what} {path} cannot be read: {error}") from error


def validated(kind: type[Document], source: str | dict[str, Any], what: str) -> Document:
    """A document from its JSON or its fields.

    Raises:
        HetmpError: an entry is wrong: *what* it is in, its place and the reason.
    """
    try:
        if isinstance(source, str):
            return kind.model_validate_json(source)
        return kind.model_validate(source)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise HetmpError(f"{what}: {place + ': ' if place else ''}{first['msg']}") from error
