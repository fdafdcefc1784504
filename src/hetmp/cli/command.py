"""Commands with options under headings, and errors that suggest the nearest option."""

import re
from typing import Any

import click

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import nearest

WIDTH = 80
"""Most columns of a help text."""

OPTION_WIDTH = 26
"""Columns for an option and its value; the text of a longer one begins on the next line."""


class Option(click.Option):
    """An option that knows its heading in the help text."""

    def __init__(self, *args: Any, heading: str = "Options", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help text, with the defaults and limits that click adds."""
        record = super().get_help_record(ctx)
        return record and (record[0], re.sub(r"\.?\s+\[([^]]*)\]$", r" (\1).", record[1]))


class Command(click.Command):
    """A command whose help text has its options under headings.

    Any error in the command line is one `HetmpError`, which suggests the nearest option.
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
        """Return the whole summary."""
        return super().get_short_help_str(limit)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse a command line into its context, as click does, with hetmp's own words for errors.

        Args:
            info_name: the name that the command is called by.
            args: the words behind it.
            parent: the context of the command that it belongs to; None for none.
            extra: for click.

        Raises:
            HetmpError: an unknown option, or a wrong value.
        """
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            path = f"{parent.command_path} {info_name}" if parent else str(info_name)
            raise HetmpError(in_words(error, self, path)) from None


def in_words(error: click.UsageError, command: click.Command, path: str) -> str:
    """Return the message for the *error* of a command line of *command*, called as *path*."""
    if isinstance(error, click.NoSuchOption):
        flags = [flag for param in command.params for flag in spelt(param)]
        near = nearest(error.option_name, [*flags, "--help"], cutoff=0.6)
        hint = f": did you mean {near}?" if near else ""
        return f"unknown option {error.option_name}{hint} ({path} --help lists all)"
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]} ({path} --help says more)"


def spelt(option: click.Parameter) -> list[str]:
    """Return the spellings of an option, ``--no-…`` included; none for an argument."""
    return [*option.opts, *option.secondary_opts] if isinstance(option, click.Option) else []


def command(name: str | None = None) -> Any:
    """Return ``click.command`` for a `Command`."""
    return click.command(name, cls=Command)


def option(*names: str, **attributes: Any) -> Any:
    """Return ``click.option`` for an `Option`."""
    return click.option(*names, cls=Option, **attributes)


def remark(text: str) -> None:
    """Print *text* on stderr: what the user should know beside the output."""
    click.echo(text, err=True)
