"""A run in one file: a TOML file with the fields of ``TrainConfig``, read and written."""

import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import tomlkit
from pydantic import ValidationError

from hetmp.core.documents import read
from hetmp.core.errors import HetmpError
from hetmp.core.files import replacing
from hetmp.core.scheme_choice import is_word, read_schemes
from hetmp.core.suggestions import nearest
from hetmp.run.config import HEADINGS, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VERSIONS = "versions"
"""The table with the versions that wrote a file."""

OPPOSITES = (
    ("weights", "plan"), ("schemes", "plan"), ("epochs", "steps"), ("profile", "profiles"),
)  # fmt: skip
"""Pairs of exclusive fields: a flag for one replaces the file's other."""

_WORDS = {
    "a valid tuple": "a list",
    "a valid dictionary": "a table",
    " for <class 'pathlib.Path'>": "",
}
"""TOML's names for types, by pydantic's."""


class ConfigFile(NamedTuple):
    """The content of a file: fields of ``TrainConfig`` as plain values, and its versions."""

    fields: dict[str, Any]
    versions: dict[str, str]


def read_config(path: str | Path) -> ConfigFile:
    """Read the fields in a TOML file; its relative paths start in its own folder.

    Each field is checked alone. Combinations are checked when a ``TrainConfig`` is made, since
    flags may add the rest.

    Raises:
        HetmpError: the file cannot be read, a name is unknown, or a value is wrong: its place,
            the reason and the value.
    """
    what = f"config {path}"
    try:
        fields = tomllib.loads(read(path, "config").removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        twice = ": this is set twice" if "overwrite" in str(error) else ""
        raise HetmpError(f"{what} cannot be read: {error}{twice}") from error
    versions = fields.pop(VERSIONS, {})
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise HetmpError(f"{what}: {VERSIONS} must be names and versions as text, got {versions!r}")
    for name, value in fields.items():
        if name not in TrainConfig.model_fields:
            raise HetmpError(f"{what}: {_unknown(name, value)}")
    folder, weights = Path(path).parent, fields.get("weights")
    if isinstance(weights, str) and weights not in ("auto", "equal"):
        if not (folder / weights).is_file():
            raise HetmpError(
                f"{what}: weights: {weights!r} is neither a list such as [70, 25, 5] nor a file "
                "nor 'equal' nor 'auto'"
            )
        from hetmp.planner.cluster_file import read_weights

        fields["weights"] = read_weights(folder / weights)
    schemes = fields.get("schemes")
    if isinstance(schemes, str) and not is_word(schemes):
        if not (folder / schemes).is_file():
            raise HetmpError(
                f"{what}: schemes: {schemes!r} is neither filters, batch, batch:K nor a file, "
                "nor a table of schemes by layer"
            )
        fields["schemes"] = read_schemes(folder / schemes)
    try:
        TrainConfig.model_validate(fields)
    except ValidationError as error:
        _check_each(error, what)
    for name in fields:
        if is_path(name, fields[name]):
            fields[name] = str(folder / fields[name])
    return ConfigFile(fields, versions)


def flags_over(fields: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Merge *flags* into a file's *fields*; a flag also replaces the field it excludes."""
    rest = dict(fields)
    for pair in OPPOSITES:
        for flag, other in (pair, pair[::-1]):
            if flag in flags and other not in flags:
                rest.pop(other, None)
    tables = {
        name: {**rest.get(name, {}), **v}
        for name, v in flags.items()
        if isinstance(TrainConfig.model_fields[name].default, dict)
    }
    merged = {**rest, **flags, **tables}
    if merged.get("weights") == "auto" and "schemes" not in flags and "weights" in flags:
        merged.pop("schemes", None)
    if ("weights" in flags or "plan" in flags) and merged.get("weights") != "auto":
        merged = {name: v for name, v in merged.items() if name != "profile" or name in flags}
    return merged


def _unknown(name: str, value: Any) -> str:
    near = nearest(name.replace("-", "_"), TrainConfig.model_fields, cutoff=0.6)
    hint = f": did you mean {near!r}?" if near else ""
    if isinstance(value, dict) and value.keys() & TrainConfig.model_fields.keys():
        hint = ": put settings above all [tables]"
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
    """Return whether the value of a field is a file or folder."""
    if name == "resume":
        return value is not None and value != "auto"
    annotation = TrainConfig.model_fields[name].annotation
    return value is not None and Path in (annotation, *get_args(annotation))


_READ_AS = """Flags win over this file. Lists are written as [70, 25, 5], and relative paths start
in this file's folder."""

HEADER = f"A complete run of `hetmp train`: `hetmp train --config FILE` starts it. {_READ_AS}"

_NOT_REPEATED = {
    "out": "Not repeated, so that the first run's files stay: give --out again.",
    "metrics": "Not repeated: it needs --out; give it with --out.",
    "checkpoint_every": "Not repeated: it needs --out; give it with --out.",
    "resume": "Not repeated: a repetition starts at the beginning.",
}
"""Fields that a run's file leaves out, with the reason."""

_OF_PLANNING = ("profile", "profiles", "profile_seconds")


def config_text(config: TrainConfig, header: str = HEADER) -> str:
    """Return *config* as the text of a file, each field with its description, absolute paths."""
    return _text(config, header, None, {}, {})


def write_run_config(
    folder: Path, config: TrainConfig, plan_used: bool, versions: Mapping[str, str], ranks: int
) -> None:
    """Write ``config.toml``, which repeats a run, into the run's *folder*.

    Args:
        config: as the user gave it: lists per rank are in the job's own order.
        plan_used: whether a plan shared the work; the file then refers to ``plan.json``.
        versions: see `present_versions`.
        ranks: number of ranks of the job, idle ones included.
    """
    left_out = _NOT_REPEATED | dict.fromkeys(_OF_PLANNING, "Not repeated: nothing was planned.")
    if plan_used:
        why = "Not repeated: the plan beside this file is its result."
        left_out |= dict.fromkeys(("weights", *_OF_PLANNING), why)
        config = config.model_copy(update={"plan": folder / "plan.json"})
    count = f"{ranks} rank" + ("s" if ranks != 1 else "")
    header = f"""The settings of a run on {count}. `hetmp train --config` with this file repeats
it, on as many ranks; --out FOLDER keeps the results. {_READ_AS}"""
    text = _text(config, header, folder, left_out, versions)
    with replacing(folder / "config.toml") as beside:
        # A path may have bytes that are not text: an unusable file is better than a failed run.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def _text(
    config: TrainConfig,
    header: str,
    folder: Path | None,
    left_out: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """Return the file's text. Paths below *folder* are relative to it, others absolute."""
    lines, tables = _comment(header), []
    for name, setting in config.model_dump().items():
        value = _in_toml(setting)
        if is_path(name, value):
            value = _written_path(value, folder)
        comment = _comment(TrainConfig.model_fields[name].description or "")
        if isinstance(value, dict):
            comment += [tomlkit.dumps({name: value}).strip()]
            tables += ["", *comment]
            continue
        entry = f"{name} = " + ("..." if value is None else tomlkit.item(value).as_string())
        if value is None:
            entry = f"# {entry}"
        elif name in left_out:
            comment, entry = [*comment, *_comment(left_out[name])], f"# {entry}"
        heading = ["", f"# ---- {HEADINGS[name]} ----"] if name in HEADINGS else []
        lines += [*heading, "", *comment, entry]
    if versions:
        tables += ["", *_comment("The versions that the run was computed with."), f"[{VERSIONS}]"]
        tables += [
            f"{name} = {tomlkit.item(number).as_string()}" for name, number in versions.items()
        ]
    return "\n".join([*lines, *tables]) + "\n"


def _comment(text: str) -> list[str]:
    words = " ".join(text.split())
    return [f"# {line}" for line in textwrap.wrap(words, 86, break_on_hyphens=False)]


def _written_path(path: str, folder: Path | None) -> str:
    absolute = Path(os.path.abspath(path))
    if folder is not None and absolute.is_relative_to(os.path.abspath(folder)):
        return str(absolute.relative_to(os.path.abspath(folder)))
    return str(absolute)


def _in_toml(value: Any) -> Any:
    """Convert *value* for TOML, which has no null: entries that are None are left out."""
    if isinstance(value, dict):
        entries = {key: _in_toml(entry) for key, entry in value.items()}
        return {key: entry for key, entry in entries.items() if entry is not None}
    if isinstance(value, list | tuple):
        return None if None in value else [_in_toml(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
