"""Command-line flags made from the fields of ``TrainConfig``."""

import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import click

from hetmp.cli.command import Option
from hetmp.cli.names import DATA_SETS, OPTIMIZERS
from hetmp.cli.options import (
    FILE,
    FOLDER,
    PATH,
    Choice,
    KeyValue,
    ModelName,
    Names,
    Numbers,
    Schemes,
    Weights,
    WordOrPath,
)
from hetmp.run.config import AUTOCASTS, CHOICES, HEADINGS, METRICS, OF_DATA, TrainConfig

_KINDS: "dict[str, tuple[click.ParamType[Any], str]]" = {
    "model": (ModelName(), "NAME"),
    "data": (Choice("data set", DATA_SETS), "NAME"),
    "data_path": (PATH, "PATH"),
    "test_path": (PATH, "PATH"),
    "weights": (Weights(), "X,X,...|FILE|equal|auto"),
    "schemes": (Schemes(), "filters|batch|batch:K|FILE"),
    "plan": (FILE, "FILE"),
    "profile": (FILE, "FILE"),
    "profiles": (FOLDER, "FOLDER"),
    "profile_seconds": (click.FLOAT, "SECONDS"),
    "optimizer": (Choice("optimizer", OPTIMIZERS, others=True), "NAME"),
    "autocast": (Names(AUTOCASTS), "NAME,..."),
    "recompute": (Names(()), "NAME,..."),
    "metrics": (Names(METRICS), "NAME,..."),
    "out": (FOLDER, "FOLDER"),
    "checkpoint_every": (click.STRING, "INTERVAL"),
    "resume": (WordOrPath(("auto",)), "auto|PATH"),
    "images_key": (click.STRING, "NAME"),
    "labels_key": (click.STRING, "NAME"),
}
"""Fields with a kind of value of their own: (kind, placeholder in the help text)."""

_BY_TYPE: "dict[Any, tuple[click.ParamType[Any], str]]" = {
    int: (click.INT, "N"),
    float: (click.FLOAT, "X"),
    str: (click.STRING, "TEXT"),
    (tuple, float): (Numbers(float, "numbers"), "X,X,..."),
    (tuple, int): (Numbers(int, "whole numbers"), "N,N,..."),
}


def field_option(
    name: str,
    *,
    filled: bool = False,
    wanted: bool = True,
    text: str | None = None,
    heading: str | None = None,
) -> Option:
    """Return the flag of a field of ``TrainConfig``.

    Args:
        name: of the field.
        filled: whether a missing flag has the field's default as its value, instead of None.
        wanted: whether the help text ends with the field's default.
        text: help text, instead of the field's description.
        heading: heading in the help text, instead of the field's own.
    """
    field = TrainConfig.model_fields[name]
    flag = "--" + name.replace("_", "-")
    plain = _plain(field.annotation)
    text = text or description_of(name)
    heading = heading or heading_of(name)
    if plain is bool:
        # A file's `true` can be taken back; of what is named no_... alone it cannot.
        both = flag if name.startswith("no_") else f"{flag}/--no-{flag[2:]}"
        return Option([both], is_flag=True, default=None, help=text, heading=heading)
    if plain is dict:
        text = f"{text.rstrip('.')}; once for each."
        names = [flag.removesuffix("s"), name]
        return Option(names, type=KeyValue(), multiple=True, help=text, heading=heading)
    if wanted and field.default is not None and not field.is_required():
        text = f"{text.rstrip('.')} (default: {field.default})."
    if name in CHOICES:
        kind: click.ParamType[Any] = Choice(name, CHOICES[name])
        metavar = "|".join(CHOICES[name])
        if len(f"  {flag} {metavar}") > 40:  # the help text has them in words
            metavar = "NAME"
    else:
        kind, metavar = _KINDS[name] if name in _KINDS else _BY_TYPE[plain]
    default = field.default if filled else None
    return Option([flag], type=kind, metavar=metavar, default=default, help=text, heading=heading)


def field_options(*names: str, **keywords: Any) -> Callable[[Any], Any]:
    """Return a decorator that adds the flags of fields to a command, see `field_option`."""

    def decorated(command: Any) -> Any:
        # As click.option keeps them: the last one first.
        options = vars(command).setdefault("__click_params__", [])
        options += [field_option(name, **keywords) for name in reversed(names)]
        return command

    return decorated


def image_options(command: Any) -> Any:
    """Add ``--shape`` and ``--classes`` to a command; a published model has defaults for them."""
    for name in ("classes", "shape"):
        sentence = re.split(r"\. | \(|\.$", description_of(name))[0]
        field_options(name, text=f"{sentence} (default: as published).", heading="Options")(command)
    return command


def description_of(name: str) -> str:
    """Return a field's description on one line, for a help text."""
    description = TrainConfig.model_fields[name].description or ""
    return " ".join(description.replace("`", "'").split())


def heading_of(name: str) -> str:
    """Return the heading of a field in help texts and files."""
    heading = ""
    for field in TrainConfig.model_fields:
        heading = HEADINGS.get(field, heading)
        if field == name:
            break
    return heading


def _plain(annotation: Any) -> Any:
    """Return the type under ``Annotated`` and ``| None``; (tuple, item) for a tuple, or dict."""
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is tuple:
        return (tuple, _plain(get_args(annotation)[0]))
    if get_origin(annotation) is dict:
        return dict
    if hasattr(annotation, "__metadata__"):
        return _plain(annotation.__origin__)
    return annotation


FIELDS = (
    "model",
    "data",
    *(name for name in TrainConfig.model_fields if name in OF_DATA),
    "readers",
    "weights",
    "schemes",
    "plan",
    "batch_size",
    "device",
    "autocast",
)
"""The settings of a run that also apply to ``evaluate`` and ``predict``."""


def used_options(command: Any) -> Any:
    """Add the flags of ``FIELDS`` to a command; a missing flag is None."""
    return field_options(*FIELDS, wanted=False)(command)
