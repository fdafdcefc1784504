"""What a run's file says, and how flags win over it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from hetmp.config import TrainConfig
from hetmp.documents import read
from hetmp.errors import HetmpError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSIONS = "versions"
"""The table that says what wrote a file."""

OPPOSITES = (("weights", "plan"), ("epochs", "steps"), ("profile", "profiles"))
"""Fields of which a run has one: a flag takes the place of the file's other one."""

_WORDS = {
    "a valid tuple": "a list",
    "a valid dictionary": "a table",
    " for <class 'pathlib.Path'>": "",
}
"""What TOML calls things, by what pydantic calls them."""


class ConfigFile(NamedTuple):
    """What a file says: fields of ``TrainConfig`` as plain values, and what wrote it."""

    fields: dict[str, Any]
    versions: dict[str, str]


def read_config(path: str | Path) -> ConfigFile:
    """The fields that a TOML file says; its relative paths start in its own folder.

    Each is checked on its own. What they come to together is checked where they become a
    ``TrainConfig``, since flags may say the rest.

    Raises:
        HetmpError: it cannot be read, a name is unknown, or a value is wrong: its place, the
            reason and the value.
    """
    what = f"config {path}"
    try:
        fields = tomllib.loads(read(path, "config").removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        twice = ": this is said twice" if "overwrite" in str(error) else ""
        raise HetmpError(f"{what} cannot be read: {error}{twice}") from error
    versions = fields.pop(VERSIONS, {})
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise HetmpError(f"{what}: {VERSIONS}: names and versions as text, got {versions!r}")
    for name, value in fields.items():
        if name not in TrainConfig.model_fields:
            raise HetmpError(f"{what}: {_unknown(name, value)}")
    folder, weights = Path(path).parent, fields.get("weights")
    if isinstance(weights, str) and weights not in ("auto", "equal"):
        if not (folder / weights).is_file():
            raise HetmpError(
                f"{what}: weights: {weights!r} is no list such as [70, 25, 5], no file, and "
                "neither 'equal' nor 'auto'"
            )
        from hetmp.planner.sources import read_weights

        fields["weights"] = read_weights(folder / weights)
    try:
        TrainConfig.model_validate(fields)
    except ValidationError as error:
        _check_each(error, what)
    for name in fields:
        if is_path(name, fields[name]):
            fields[name] = str(folder / fields[name])
    return ConfigFile(fields, versions)


def flags_over(fields: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A file's *fields* with *flags* in their place, and in the place of their opposites."""
    kept = dict(fields)
    for pair in OPPOSITES:
        for flag, other in (pair, pair[::-1]):
            if flag in flags and other not in flags:
                kept.pop(other, None)
    tables = {name: {**kept.get(name, {}), **v} for name, v in flags.items() if isinstance(v, dict)}
    told = {**kept, **flags, **tables}
    if ("weights" in flags or "plan" in flags) and told.get("weights") != "auto":
        told = {name: v for name, v in told.items() if name != "profile" or name in flags}
    return told


def _unknown(name: str, value: Any) -> str:
    near = nearest(name.replace("-", "_"), TrainConfig.model_fields, cutoff=0.6)
    hint = f": did you mean {near!r}?" if near else ""
    if isinstance(value, dict) and value.keys() & TrainConfig.model_fields.keys():
        hint = ": settings stand above all [tables]."
    return f"unknown setting {name!r}{hint} (hetmp train --help lists all)"


def _check_each(error: ValidationError, what: str) -> None:
    """Raise the first error of a single field, if there is one."""
    for wrong in error.errors():
        # What is not said yet, flags may say; so with what two fields say together.
        if wrong["type"] == "missing" or not wrong["loc"]:
            continue
        cause = wrong.get("ctx", {}).get("error")
        if isinstance(cause, HetmpError):
            raise HetmpError(f"{what}: {cause}") from None
        # Beside names and numbers, a place has the types that a value may have.
        parts = [str(part) for part in wrong["loc"] if "[" not in str(part)]
        reason = wrong["msg"]
        for pythons, tomls in _WORDS.items():
            reason = reason.replace(pythons, tomls)
        raise HetmpError(f"{what}: {'.'.join(parts)}: {reason}, got {wrong['input']!r}") from None


def is_path(name: str, value: Any) -> bool:
    """Whether the value of a field is a file or folder."""
    if name == "resume":
        return value is not None and value != "auto"
    annotation = TrainConfig.model_fields[name].annotation
    return value is not None and Path in (annotation, *get_args(annotation))
