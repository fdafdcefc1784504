"""Checks of numbers and shapes that a user gives."""

from collections.abc import Iterable
from operator import index
from typing import Any

from hetmp.core.errors import HetmpError


def whole_number(what: str, value: Any, least: int, most: int | None = None) -> int:
    """Return *value* as an int from *least* to *most*; raise a `HetmpError` otherwise.

    Args:
        what: names the value in the message.
        most: no upper limit if None.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limit = f"{least} or more" if most is None else f"{least} to {most}"
        raise HetmpError(f"{what} is a whole number, {limit}, got {value!r}")
    return number


def image_shape(what: str, shape: Any) -> tuple[int, ...]:
    """Return *shape* as (channels, *spatial), all 1 or more; raise a `HetmpError` otherwise."""
    if not isinstance(shape, Iterable) or len(sides := tuple(shape)) < 2:
        raise HetmpError(
            f"{what} is the channels and the spatial sides of one image, "
            f"such as (3, 32, 32), got {shape!r}"
        )
    return tuple(whole_number(f"each side of {what} {sides}", side, 1) for side in sides)
