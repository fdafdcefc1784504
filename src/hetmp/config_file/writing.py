"""A run's file, as hetmp writes it."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from hetmp.config import HEADINGS, TrainConfig
from hetmp.config_file.reading import VERSIONS, is_path
from hetmp.replacing import replacing

_READ_AS = """Flags win over what stands here. Lists are written as [70, 25, 5], and a path that is
not absolute starts in this file's folder."""

HEADER = f"A run of `hetmp train`, whole: `hetmp train --config FILE` starts it. {_READ_AS}"

_NOT_REPEATED = {
    "out": "Not repeated, so that the first run's files stay: give --out anew.",
    "metrics": "Not repeated: it needs --out, and is given with it.",
    "checkpoint_every": "Not repeated: it needs --out, and is given with it.",
    "resume": "Not repeated: a repetition starts at the beginning.",
}
"""What a run's file leaves out, and why."""

_OF_PLANNING = ("profile", "profiles", "profile_seconds")


def config_text(config: TrainConfig, header: str = HEADER) -> str:
    """A file that says all of *config*, every field with its description; paths are absolute."""
    return _text(config, header, None, {}, {})


def write_run_config(
    folder: Path, config: TrainConfig, plan_used: bool, versions: Mapping[str, str], ranks: int
) -> None:
    """Write ``config.toml``, which repeats a run, into the run's *folder*.

    Args:
        config: as the user told it: what names every rank is in the ranks' own order.
        plan_used: whether the work was shared by a plan, which is then read from ``plan.json``.
        versions: see `present_versions`.
        ranks: of the job, idle ones included.
    """
    left_out = _NOT_REPEATED | dict.fromkeys(_OF_PLANNING, "Not repeated: nothing was planned.")
    if plan_used:
        why = "Not repeated: the plan beside this file is what came of it."
        left_out |= dict.fromkeys(("weights", *_OF_PLANNING), why)
        config = config.model_copy(update={"plan": folder / "plan.json"})
    count = f"{ranks} rank" + ("s" if ranks != 1 else "")
    header = f"""What a run on {count} was told. It is repeated by `hetmp train --config` with this
file, on as many ranks; --out FOLDER keeps what comes of it. {_READ_AS}"""
    text = _text(config, header, folder, left_out, versions)
    with replacing(folder / "config.toml") as beside:
        # A path may have bytes that are no text: rather a file that is refused than a failed run.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def _text(
    config: TrainConfig,
    header: str,
    folder: Path | None,
    left_out: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """The file's text. Paths below *folder* are relative to it, others absolute."""
    lines, tables = _comment(header), []
    for name, told in config.model_dump().items():
        value = _in_toml(told)
        if is_path(name, value):
            value = _written_path(value, folder)
        about = _comment(TrainConfig.model_fields[name].description or "")
        if isinstance(value, dict):
            about += [tomlkit.dumps({name: value}).strip()]
            tables += ["", *about]
            continue
        said = f"{name} = " + ("..." if value is None else tomlkit.item(value).as_string())
        if value is None:
            said = f"# {said}"
        elif name in left_out:
            about, said = [*about, *_comment(left_out[name])], f"# {said}"
        heading = ["", f"# ---- {HEADINGS[name]} ----"] if name in HEADINGS else []
        lines += [*heading, "", *about, said]
    if versions:
        tables += ["", *_comment("What the run was computed with."), f"[{VERSIONS}]"]
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
    """*value* in what TOML has words for, which are none for None: such entries are left out."""
    if isinstance(value, dict):
        told = {key: _in_toml(entry) for key, entry in value.items()}
        return {key: entry for key, entry in told.items() if entry is not None}
    if isinstance(value, list | tuple):
        return None if None in value else [_in_toml(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
