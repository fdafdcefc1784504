"""Commands as hetmp has them: options under headings, and errors that name what was meant."""

import re
from typing import Any

import click

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import nearest

WIDTH = 80
"""Columns of a help text, where the terminal has as many."""

OPTION_WIDTH = 26
"""Columns for an option and its value; where they take more, the text begins on the next line."""


class Option(click.Option):
    """An option with the heading that it stands under in the help text."""

    def __init__(self, *args: Any, heading: str = "Options", **told: Any) -> None:
        super().__init__(*args, **told)
        self.heading = heading

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its text, what click adds of defaults and limits included."""
        record = super().get_help_record(ctx)
        return record and (record[0], re.sub(r"\.?\s+\[([^]]*)\]$", r" (\1).", record[1]))


class Command(click.Command):
    """A command whose help text has its options under headings.

    What is wrong with the command line is one `HetmpError`, which names the nearest option.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading, all texts in one column."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None and isinstance(option, click.Option):
                heading = getattr(option, "heading", "Options")
                headings.setdefault(heading, []).append(record)
        headings["Options"] = headings.pop("Options")  # --help, at least: at the end
        names = [name for rows in headings.values() for name, _ in rows]
        width = max(len(name) for name in names if len(name) <= OPTION_WIDTH)
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], width)

    def get_short_help_str(self, limit: int = WIDTH) -> str:
        """The summary, whole."""
        return super().get_short_help_str(limit)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of a command line.

        Raises:
            HetmpError: an option that there is not, or a value that it does not take.
        """
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            path = f"{parent.command_path} {info_name}" if parent else str(info_name)
            raise HetmpError(in_words(error, self, path)) from None


def in_words(error: click.UsageError, command: click.Command, path: str) -> str:
    """What is wrong with a *command*'s line, and where to look; *path* is how it is called."""
    if isinstance(error, click.NoSuchOption):
        flags = [flag for param in command.params for flag in spelt(param)]
        near = nearest(error.option_name, [*flags, "--help"], cutoff=0.6)
        hint = f": did you mean {near}?" if near else ""
        return f"unknown option {error.option_name}{hint} ({path} --help lists all)"
    said = error.format_message().rstrip(".")
    return f"{said[:1].lower()}{said[1:]} ({path} --help says more)"


def spelt(option: click.Parameter) -> list[str]:
    """The ways to write an option, ``--no-…`` included; none for an argument."""
    return [*option.opts, *option.secondary_opts] if isinstance(option, click.Option) else []


def command(name: str | None = None) -> Any:
    """Like ``click.command``, for a `Command`."""
    return click.command(name, cls=Command)


def option(*names: str, **told: Any) -> Any:
    """Like ``click.option``, for an `Option`."""
    return click.option(*names, cls=Option, **told)
