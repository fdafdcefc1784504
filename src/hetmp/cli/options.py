"""What several commands take."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hetmp.errors import HetmpError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    def __init__(self, kind: Callable[[str], Any], name: str) -> None:
        self._kind, self.name = kind, name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 70,25,5", param, ctx)


class Weights(Numbers):
    """Numbers separated by commas, a file of them, ``equal`` or ``auto``."""

    def __init__(self) -> None:
        super().__init__(float, "numbers")

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str) or value in ("auto", "equal"):
            return value
        if Path(value).is_file():
            from hetmp.planner.sources import read_weights

            return read_weights(value)
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(
                f"{value!r} is no list of numbers such as 70,25,5, no file, and neither 'equal' nor"
                " 'auto'"
            )


class KeyValue(click.ParamType):  # type: ignore[type-arg]
    """``KEY=VALUE``, whose value is one of TOML (``true``, ``0.9``, ``[0.9, 0.99]``), else text."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        if not isinstance(value, str):
            return value
        key, equals, text = value.partition("=")
        key = key.strip()
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE, such as nesterov=true", param, ctx)
        try:
            told = tomllib.loads(f"it = {text}")
        except tomllib.TOMLDecodeError:
            return key, text
        plain = isinstance(told["it"], bool | int | float | str | list | dict)
        return key, told["it"] if plain and len(told) == 1 else text


def check_folder(path: str) -> None:
    """Refuse a file to be written whose folder is not there, before the work is done.

    Raises:
        HetmpError: naming the folder.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise HetmpError(f"{folder} is no folder: make it, or choose another --out")


def image_sizes(
    model: str, shape: tuple[int, ...] | None, classes: int | None
) -> tuple[tuple[int, ...], int]:
    """The image's shape and the classes as they are told, else as published."""
    from hetmp import models

    published_shape, published_classes = models.published(model)
    input_shape, count = shape or published_shape, classes or published_classes
    if input_shape is None or count is None:
        raise HetmpError(f"{model} has no published sizes: give --shape and --classes")
    return input_shape, count
