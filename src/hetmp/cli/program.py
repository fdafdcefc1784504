"""The program ``hetmp``: its commands, error messages and exit codes."""

import contextlib
import os
import signal
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click
from click.shell_completion import shell_complete

from hetmp.cli.command import WIDTH, in_words
from hetmp.cluster import Group, launched, mpi_started, speaks_first
from hetmp.core.error_report import hold_warnings, report
from hetmp.core.errors import FAILED, HetmpError, exit_code, grace_seconds
from hetmp.core.suggestions import unknown_name
from hetmp.core.version import __version__

COMPLETE = "_HETMP_COMPLETE"
"""Variable that a shell sets to ask for completions: see ``hetmp completion``."""

COMMANDS = {
    "Before a run": {
        "doctor": "hetmp.cli.commands.doctor:doctor",
        "models": "hetmp.cli.commands.models:models",
        "explain": "hetmp.cli.commands.explain:explain",
        "profile": "hetmp.cli.commands.profile:profile",
        "plan": "hetmp.cli.commands.plan:plan",
    },
    "A run": {
        "train": "hetmp.cli.commands.train:train_command",
        "submit": "hetmp.cli.commands.submit:submit",
        "trace": "hetmp.cli.commands.trace:trace_command",
    },
    "After a run": {
        "report": "hetmp.cli.commands.report:report_command",
        "evaluate": "hetmp.cli.commands.evaluate:evaluate",
        "predict": "hetmp.cli.commands.predict:predict",
        "inspect": "hetmp.cli.commands.inspect:inspect",
        "export": "hetmp.cli.commands.export_import:export_command",
        "import": "hetmp.cli.commands.export_import:import_command",
    },
    "Beside it": {
        "bench": "hetmp.cli.commands.bench:bench",
        "completion": "hetmp.cli.commands.completion:completion",
    },
}
"""Import path of each command, by heading of the help text; imported when needed."""

ENDS = """\b
Exit codes:
  0    done
  1    failed on the way: a full disk, a loss that is not a number
  2    bad input: the message names the value, the limit and the remedy
  75   the run was asked to end; continue it with --resume auto
  130  stopped by Ctrl-C

docs/commands.md lists all of them, and the environment variables.
"""


class _Commands(click.Group):
    """Commands under headings, imported when needed; an unknown name suggests the nearest."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._places = {name: at for names in COMMANDS.values() for name, at in names.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help text."""
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of a name; None if it is unknown."""
        if cmd_name not in self._places:
            return None
        module, _, name = self._places[cmd_name].partition(":")
        loaded = getattr(import_module(module), name)
        return loaded if isinstance(loaded, click.Command) else loaded()

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command of a command line.

        Raises:
            HetmpError: an unknown command.
        """
        if args and args[0] not in self._places and not args[0].startswith("-"):
            raise unknown_name("command", args[0], self._places)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, heading by heading."""
        width = max(map(len, self._places))
        for heading, names in COMMANDS.items():
            rows = [(name.ljust(width), self._summary(ctx, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows, width)

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str() if command is not None else ""


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        versions = [f"{name} {_version(name)}" for name in ("torch", "mpi4py", "numpy", "h5py")]
        click.echo(f"hetmp {__version__} ({', '.join(versions)})")
        ctx.exit()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
    no_args_is_help=False,
    invoke_without_command=True,
    epilog=ENDS,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of hetmp and its main dependencies.",
)
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Train convolutional networks across devices of unequal speed.

    Start training with MPI, one process per device. 'hetmp COMMAND --help' lists the options of
    a command.

    \b
    Examples:
      hetmp explain resnet50 --weights 70,25,5
      mpirun -n 3 hetmp train --model digits --data digits --weights 70,25,5
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the program ``hetmp``: one rank prints the messages that every rank would print."""
    instruction = os.environ.get(COMPLETE)
    if instruction:
        sys.exit(shell_complete(commands, {}, "hetmp", COMPLETE, instruction))
    rank, _ = launched() or (0, 1)
    # Ctrl-C ends the process at once. As an exception it would not be heard in a collective, and
    # get lost, or abort the process, where C++ calls Python (torch does so while it is imported).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.ExitStack() as stack:
        if not speaks_first():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            hold_warnings(rank)
        code = _ended()
    sys.exit(code)


def _ended() -> int:
    """Run the command of the command line and return its exit code."""
    try:
        with commands.make_context("hetmp", sys.argv[1:]) as context:
            commands.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except click.UsageError as error:
        return _report_shared(HetmpError(in_words(error, commands, "hetmp")))
    except Exception as error:
        if isinstance(error, HetmpError):
            return _report_shared(error)
        _keep_silent_at_the_end(error)
        return _report_own(error)
    return 0


def _report_shared(error: HetmpError) -> int:
    """Report an error that every rank has, from one rank; return its exit code."""
    if speaks_first():
        report(error)
    elif not mpi_started():
        # Launchers kill the others when the first process fails: the one that speaks needs time.
        time.sleep(grace_seconds())
    return error.exit_code


def _report_own(error: Exception) -> int:
    """Report an error that this rank alone may have; return its exit code."""
    if mpi_started():
        Group().fail(error)
    rank, size = launched() or (0, 1)
    if rank > 0:
        time.sleep(grace_seconds())  # where rank 0 fails too, some launchers end all with it
    report(error, prefix=f"rank {rank}: " if size > 1 else "", trace=rank == 0)
    return exit_code(error)


def _keep_silent_at_the_end(error: Exception) -> None:
    """Redirect stdout to nowhere after an OSError, or Python's final flush would fail again."""
    if isinstance(error, OSError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
