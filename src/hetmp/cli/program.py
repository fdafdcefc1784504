"""The program ``hetmp``: its commands, and how it ends.

Exit codes: 0 done, 1 the job failed, 2 bad input, 75 a run was asked to end and can be resumed.
"""

import contextlib
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

import hetmp
from hetmp.cli.bench import bench
from hetmp.cli.doctor import doctor
from hetmp.cli.evaluate import evaluate
from hetmp.cli.explain import explain
from hetmp.cli.inspect import inspect
from hetmp.cli.models import models
from hetmp.cli.plan import plan
from hetmp.cli.predict import predict
from hetmp.cli.profile import profile
from hetmp.cli.submit import submit
from hetmp.cli.train import train_command
from hetmp.cli.transfer import export_command, import_command
from hetmp.comm import mpi_started, speaks_first
from hetmp.errors import HetmpError, report, unknown_name

LET_SPEAK_SECONDS = 3.0
"""How long a silent rank that fails before MPI starts waits for the one that says why."""


class _Commands(click.Group):
    """Commands whose unknown names are answered with the nearest one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(str(unknown_name("command", args[0], self.commands)), ctx)
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        told = [f"{name} {_version(name)}" for name in ("torch", "mpi4py", "numpy", "h5py")]
        click.echo(f"hetmp {hetmp.__version__} ({', '.join(told)})")
        ctx.exit()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of hetmp and of what it stands on.",
)
def commands() -> None:
    """Train convolutional networks across devices of unequal speed.

    Start training with MPI, one process per device:

    \b
      mpirun -n 3 hetmp train --model digits --data digits --weights 70,25,5
    """


for command in (
    models,
    explain,
    profile,
    plan,
    train_command(),
    submit,
    evaluate,
    predict,
    inspect,
    export_command,
    import_command,
    bench,
    doctor,
):
    commands.add_command(command)


def main() -> None:
    """The program ``hetmp``: runs a command; of many ranks, one speaks of bad input."""
    code = 0
    with contextlib.ExitStack() as stack:
        if not speaks_first():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        try:
            commands.main(prog_name="hetmp", standalone_mode=False)
        except click.exceptions.Abort:
            code = 1
        except (click.ClickException, HetmpError) as error:
            code = 2
            if speaks_first() and isinstance(error, click.ClickException):
                error.show()
            elif speaks_first():
                report(error)
    if code and not speaks_first() and not mpi_started():
        # Launchers kill the others when the first process fails: the one that speaks needs time.
        time.sleep(LET_SPEAK_SECONDS)
    sys.exit(code)
