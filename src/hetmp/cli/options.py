"""Kinds of option values, with their parsing and shell completion."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from hetmp.cli.names import MODELS
from hetmp.core.errors import HetmpError
from hetmp.core.scheme_choice import is_word, read_schemes
from hetmp.core.suggestions import near_path, nearest, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = click.Path(dir_okay=False)
FOLDER = click.Path(file_okay=False)
PATH = click.Path()


class _Kind(click.ParamType):  # type: ignore[type-arg]
    """A kind of value, completed from its *words*, else from files if it may be one."""

    words: tuple[str, ...] = ()
    path: str | None = None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the words that begin with *incomplete*; if there is none, files.

        click gives *ctx* and *param*, the option that is completed; neither is looked at.
        """
        matches = [CompletionItem(word) for word in self.words if word.startswith(incomplete)]
        if self.path is not None and not matches:
            return [CompletionItem(incomplete, type=self.path)]
        return matches


class Numbers(_Kind):
    """Numbers separated by commas."""

    def __init__(self, kind: Callable[[str], Any], name: str) -> None:
        self._kind, self.name = kind, name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the numbers of *value*, a text; *param* and *ctx* are for the error message."""
        if not isinstance(value, str):
            return value
        try:
            return tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            example = "3,32,32" if self._kind is int else "70,25,5"
            self.fail(f"{value!r} is not a list of {self.name} such as {example}", param, ctx)


class Names(_Kind):
    """Names from a fixed set, separated by commas."""

    name = "names"

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the names of *value*, a text; *param* and *ctx*, which click gives, are unused."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return completions of the last name of *incomplete*; *ctx* and *param* are click's."""
        before, comma, last = incomplete.rpartition(",")
        return [
            CompletionItem(before + comma + word) for word in self.words if word.startswith(last)
        ]


class Choice(_Kind):
    """A choice of known words.

    Args:
        kind: name of the choice, for messages.
        words: the known words.
        others: whether other words are accepted too; *words* then only serve completion.
    """

    def __init__(self, kind: str, words: Iterable[str], others: bool = False) -> None:
        self.name, self.words, self._others = kind, tuple(words), others

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return *value*, one of the words; *param* and *ctx*, which click gives, are not used.

        Raises:
            HetmpError: another word, where no others are allowed.
        """
        if value not in self.words and not self._others:
            raise unknown_name(self.name, value, self.words)
        return value


class ModelName(Choice):
    """A network by name, or ``package.module:function``."""

    def __init__(self) -> None:
        super().__init__("model", MODELS)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return *value*, a name or a user's own network; *param* and *ctx* are for ``Choice``."""
        return value if ":" in str(value) else super().convert(value, param, ctx)


class Weights(Numbers):
    """Numbers separated by commas, a file of them, or one of a few *words*."""

    path = "file"

    def __init__(self, words: Iterable[str] = ("equal", "auto")) -> None:
        super().__init__(float, "numbers")
        self.words = tuple(words)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the weights that *value* says: numbers, a file of them, or one of the words.

        *param* and *ctx* are for the error message.
        """
        if not isinstance(value, str) or value in self.words:
            return value
        if Path(value).is_file():
            from hetmp.planner.cluster_file import read_weights

            return read_weights(value)
        try:
            return tuple(map(float, value.split(",")))
        except ValueError:
            either = "".join(f" nor {word}" for word in self.words)
            word = nearest(value, self.words)
            hint = f" (did you mean {word}?)" if word else near_path(value)
            self.fail(
                f"{value!r} is neither a list of numbers such as 70,25,5 nor a file{either}{hint}",
                param,
                ctx,
            )


class Schemes(_Kind):
    """The schemes of layers: a word, or a file of them by layer."""

    name, path, words = "schemes", "file", ("filters", "batch", "batch:")

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the schemes that *value* says: a word, or those in a file, by layer.

        *param* and *ctx* are for the error message.
        """
        if not isinstance(value, str) or is_word(value):
            return value
        if Path(value).is_file():
            return read_schemes(value)
        word = nearest(value, ("filters", "batch"))
        hint = f" (did you mean {word}?)" if word else near_path(value)
        self.fail(f"{value!r} is neither filters, batch, batch:K nor a file{hint}", param, ctx)


class KeyValue(_Kind):
    """``KEY=VALUE`` with a TOML value (``true``, ``0.9``, ``[0.9, 0.99]``), else text."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Return (key, value) of *value*, ``key=value``; *param* and *ctx* are for the error."""
        if not isinstance(value, str):
            return value
        key, equals, text = value.partition("=")
        key = key.strip()
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE, such as nesterov=true", param, ctx)
        try:
            parsed = tomllib.loads(f"it = {text}")
        except tomllib.TOMLDecodeError:
            return key, text
        plain = isinstance(parsed["it"], bool | int | float | str | list | dict)
        return key, parsed["it"] if plain and len(parsed) == 1 else text


class WordOrPath(_Kind):
    """One of a few *words*, or a file or folder."""

    name, path = "path", "file"

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return *value*, unless it seems a mistyped word; *param* and *ctx* are for the error."""
        near = nearest(value, self.words, cutoff=0.7)
        if near not in (None, value) and not Path(value).exists():
            self.fail(f"{value!r} does not exist: did you mean {near!r}?", param, ctx)
        return value


def check_folder(path: str) -> None:
    """Refuse an output file whose folder does not exist, before the work is done.

    Raises:
        HetmpError: the folder is missing.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise HetmpError(
            f"{folder} is not a folder{near_path(folder)}: make it, or choose another --out"
        )


def image_sizes(
    model: str, shape: tuple[int, ...] | None, classes: int | None
) -> tuple[tuple[int, ...], int]:
    """Return (image shape, number of classes): as given, else as published for *model*.

    Raises:
        HetmpError: a size is neither given nor published.
    """
    from hetmp import models

    published_shape, published_classes = models.published(model)
    input_shape, count = shape or published_shape, classes or published_classes
    if input_shape is None or count is None:
        raise HetmpError(f"{model} has no published sizes: give --shape and --classes")
    return input_shape, count
