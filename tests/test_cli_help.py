"""Help texts fit the terminal, their examples are right, an option's name has one meaning."""

import re
import shlex
from collections import defaultdict
from pathlib import Path

import click
import pytest

from hetmp.cli.command import spelt
from hetmp.cli.program import COMMANDS, commands
from hetmp.run.config import HEADINGS, TrainConfig
from hetmp.tools.doctor import OF_TESTS, VARIABLES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "commands.md").read_text()
KINDS = (".py", ".sh", ".sbatch", ".j2", ".md")
NAMES = [name for names in COMMANDS.values() for name in names]
CONTEXT = commands.make_context("hetmp", [], resilient_parsing=True, terminal_width=80)


def command_of(name: str) -> click.Command:
    found = commands.get_command(CONTEXT, name)
    assert found is not None
    return found


def help_of(name: str) -> str:
    return command_of(name).get_help(click.Context(command_of(name), CONTEXT, info_name=name))


def options_of(name: str) -> list[click.Option]:
    return [one for one in command_of(name).params if isinstance(one, click.Option)]


def examples(text: str) -> list[str]:
    """The command lines of the part of a help text that has examples."""
    part = re.search(r"^ *Examples?:\n((?:.|\n)*?)(?:\n\n|\Z)", text, re.M)
    return [line.strip() for line in part[1].replace("\\\n", "").splitlines()] if part else []


# --- what is printed ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_80_columns_with_a_text_for_every_option(name):
    text = help_of(name)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert all(option.help for option in options_of(name))
    assert text.count("-h, --help") == 1
    summary = command_of(name).get_short_help_str(80)
    assert f"  {summary}\n" in CONTEXT.get_help() + "\n"  # whole, and on one line


def test_the_programs_help_has_all_commands_by_what_one_does():
    text = CONTEXT.get_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "..." not in text.partition("\n")[2]
    places = [text.index(f"\n{heading}:\n") for heading in COMMANDS]
    assert places == sorted(places)
    for heading, names in COMMANDS.items():
        part = text[text.index(f"\n{heading}:\n") :]
        assert all(f"\n  {name} " in part for name in names)


def test_the_many_options_of_a_run_stand_under_headings():
    text = help_of("train")
    for heading in HEADINGS.values():
        assert f"\n{heading}:\n" in text
    fields = list(TrainConfig.model_fields)
    headings = [*HEADINGS.values(), "Options"]
    for (first, heading), after in zip(HEADINGS.items(), headings[1:], strict=True):
        own = text[text.index(f"\n{heading}:\n") : text.index(f"\n{after}:\n")]
        last = list(HEADINGS)[headings.index(after)] if after in HEADINGS.values() else None
        for name in fields[fields.index(first) : fields.index(last) if last else None]:
            assert f"\n  --{name.replace('_', '-').removesuffix('_')}"[:-1] in own, name


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_right(name):
    lines = examples(help_of(name))
    called = [re.search(rf"(?:^|[ (]|/)hetmp {name}\b([^>)]*)", line) for line in lines]
    found = [match[1] for match in called if match is not None]
    assert found, lines
    for words in found:
        command_of(name).make_context(name, shlex.split(words), CONTEXT)


# --- one word for one thing ---------------------------------------------------------------------

DIFFERENT = {
    "--out": {"train": "a run keeps a folder", "report": "a report is a folder"},
    "--config": {"submit": "of a job, not of a run"},
    "--steps": {"trace": "those that are recorded, after some that are not"},
    "--all": {"explain": "of the operations", "inspect": "of the tensors"},
    "--weights": {
        "explain": "nothing is measured, and no ranks are there to be equal",
        "bench": "nothing is measured",
    },
}
"""Where an option differs from the others of its name, and why."""


def meaning(option: click.Option) -> tuple[str, str | None, bool, str]:
    """What kind of value an option takes, and the first thing that its text says."""
    first = re.split(r"[.;:] | \(|\.$", option.help or "")[0]
    return type(option.type).__name__, option.metavar, option.is_flag, first


def test_an_option_means_the_same_in_every_command():
    found: dict[str, dict[str, tuple]] = defaultdict(dict)
    for name in NAMES:
        for option in options_of(name):
            found[option.opts[0]][name] = meaning(option)
    shared = {flag: by for flag, by in found.items() if len(by) > 1}
    assert len(shared) > 30
    for flag, by in shared.items():
        alike = {name: told for name, told in by.items() if name not in DIFFERENT.get(flag, {})}
        assert len(set(alike.values())) <= 1, (flag, alike)
        for name in DIFFERENT.get(flag, {}):
            assert by[name] not in alike.values(), f"{flag} of {name} is like the others"


def test_plans_defaults_and_lists_are_told_in_one_style():
    for name in NAMES:
        assert not re.search(r"\[default|\[required|\[x", help_of(name))
        assert not re.search(r"\b(INTEGER|FLOAT|TEXT|PATH\b.*--plan)", help_of(name)), name


# --- the page -----------------------------------------------------------------------------------


def test_the_page_has_every_command_under_its_heading_with_an_example():
    parts = dict(re.findall(r"^## (.+)\n((?:.|\n)*?)(?=^## |\Z)", PAGE, re.M))
    for heading, names in COMMANDS.items():
        said = re.findall(r"^`hetmp (\w+)` ", parts[heading], re.M)
        assert said == list(names)
        for name in names:
            told = parts[heading].split(f"\n`hetmp {name}` ")[1].split("\n`hetmp ")[0]
            block = re.search(r"```sh\n((?:.|\n)*?)```", told)
            assert block and f"hetmp {name}" in block[1], name


def test_the_page_has_the_options_that_commands_share():
    part = PAGE.split("## Options that several commands have")[1].split("\n## ")[0]
    told = set(re.findall(r"--[a-z][a-z-]*", part))
    known = {flag for name in NAMES for option in options_of(name) for flag in spelt(option)}
    assert told <= known
    beside_runs = set(NAMES) - {"train", "trace", "evaluate", "predict"}  # those share all
    several = [
        {flag for option in options_of(name) for flag in option.opts} for name in beside_runs
    ]
    shared = {flag for flags in several for flag in flags if sum(flag in f for f in several) > 1}
    assert shared - {"--all", "--filters-only"} <= told | {"--name"}, shared - told


def test_the_page_has_the_exit_codes_of_the_programs_help():
    codes = re.findall(r"^ +(\d+)  +\w", CONTEXT.get_help(), re.M)
    assert codes == ["0", "1", "2", "75", "130"]
    part = PAGE.split("## Exit codes")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", part, re.M) == codes


def test_the_page_has_every_variable_that_is_read():
    places = [ROOT / name for name in ("src", "jobs", "scripts", "tests")]
    files = [file for place in places for file in place.rglob("*") if file.suffix in KINDS]
    read = set()
    for file in (ROOT / "CMakeLists.txt", ROOT / "Makefile", *files):
        if file.name not in ("test_cli_help.py", "test_cli_suggestions.py"):
            read |= set(re.findall(r"\b_?HETMP_[A-Z0-9_]*[A-Z0-9]\b", file.read_text()))
    part = PAGE.split("## Environment variables")[1].split("\n## ")[0]
    told = set(re.findall(r"`(_?HETMP_\w+)`", part))
    assert told == read
    assert {name for name in told if not name.startswith(("_", *OF_TESTS))} == {
        *VARIABLES,
        "HETMP_PYTHON",
    }
