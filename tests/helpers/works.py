"""The rows of docs/sliced-model.md: each is shown by a test."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=Callable[..., object])


def works(*operations: str) -> Callable[[T], T]:
    """Mark a test as the one that shows what *operations*, rows of the page, do."""
    return lambda test: test
