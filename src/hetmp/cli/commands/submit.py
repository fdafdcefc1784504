"""``hetmp submit``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem, ShellComplete

from hetmp.cli.command import Command, option, spelt
from hetmp.cli.names import JOBS
from hetmp.cli.options import FILE, FOLDER, Choice
from hetmp.core.errors import HetmpError

if TYPE_CHECKING:
    from hetmp.tools.submit import Job

ENV_FILE = Path("jobs", "env.sh")


def _command(template: str) -> click.Command:
    """Return the hetmp command that a template's job runs."""
    if template == "profile":
        from hetmp.cli.commands.profile import profile

        return profile
    if template == "evaluate":
        from hetmp.cli.commands.evaluate import evaluate

        return evaluate
    from hetmp.cli.commands.train import train_command

    return train_command()


def _check_arguments(template: str, job: "Job") -> None:
    """Refuse arguments that the job's command would refuse, before the job waits in the queue."""
    command = _command(template)
    context = command.make_context(f"hetmp {command.name}", list(job.arguments))
    if command.name == "train":
        from hetmp.cli.commands.train import config_from_flags

        config_from_flags(
            context.params,
            out="run",
            profiles=job.profiles,
            checkpoint_every=job.checkpoint_every,
        )


class _Submit(Command):
    """A command that recognizes flags that belong to the job's command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            words = [word for word in args if not word.startswith("-")]
            template = next((word for word in words if word in JOBS), "train")
            flags = [flag for param in _command(template).params for flag in spelt(param)]
            if error.option_name not in flags:
                raise
            raise HetmpError(
                f"{error.option_name} belongs to the job: put it after --, as in "
                f"hetmp submit {template} -- {error.option_name} ..."
            ) from None


class _Template(Choice):
    """The job template; with --config it may be missing, with the job's arguments in its place."""

    def __init__(self) -> None:
        super().__init__("job template", JOBS, others=True)


class _Arguments(click.ParamType):  # type: ignore[type-arg]
    """An argument of the job's command, completed as that command completes it."""

    name = "argument"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the completions of ``hetmp train`` (or profile, evaluate).

        *incomplete* is the word so far. click gives *ctx*, the context with the words before it,
        and *param*, the argument that is completed.
        """
        job = _command(ctx.params.get("template") or "train")
        words = [str(word) for word in ctx.params.get("arguments") or ()]
        return ShellComplete(job, {}, f"hetmp {job.name}", "").get_completions(words, incomplete)


_job = partial(option, heading="The job")
_nodes = partial(option, heading="Its nodes")
_run = partial(option, heading="Its run")


@click.command(cls=_Submit)
@click.argument("template", type=_Template(), required=False)
@click.argument("arguments", nargs=-1, type=_Arguments(), metavar="[-- ARGUMENT...]")
@_job("--config", type=FILE, metavar="FILE", help="A job in a file (TOML); flags win.")
@_job("--name", metavar="NAME", help="Name of the job in the queue.")
@_job("--time", metavar="TIME", help="Time limit, such as 8:00:00.")
@_job("--account", metavar="NAME", help="Account to charge.")
@_job("--qos", metavar="NAME", help="Quality of service.")
@_job(
    "--option",
    "options",
    multiple=True,
    metavar="--NAME=VALUE",
    help="More options of sbatch; once for each.",
)
@_job("--mpi", metavar="TYPE", help="Value for srun --mpi= (default: the one that fits).")
@_job(
    "--env-file",
    type=FILE,
    metavar="FILE",
    help="Shell file that the job sources first (default: jobs/env.sh, if it exists).",
)
@option("--dry-run", is_flag=True, help="Print the script, and submit nothing.")
@option("--follow", is_flag=True, help="Show the run's progress until the job ends.")
@_nodes("--nodes", metavar="N|MIN-MAX", help="Number of nodes, or a range of it.")
@_nodes("--partition", metavar="NAME", help="Partition of the nodes.")
@_nodes("--constraint", metavar="FEATURES", help="Features that the nodes must have.")
@_nodes("--tasks-per-node", type=click.INT, metavar="N", help="Ranks on each node.")
@_nodes("--cpus-per-task", type=click.INT, metavar="N", help="Cores for each rank.")
@_nodes("--gpus-per-task", type=click.INT, metavar="N", help="GPUs for each rank; it uses one.")
@_nodes("--mem", metavar="SIZE", help="Memory of each node, such as 16G.")
@_nodes(
    "--component",
    "components",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Nodes of one kind, such as partition=new,nodes=2,gpus_per_task=1; once for each kind.",
)
@_run(
    "--run",
    type=FOLDER,
    metavar="FOLDER",
    help="Folder of the run; give an older one to continue it.",
)
@_run(
    "--profiles",
    type=FOLDER,
    metavar="FOLDER",
    help="Folder of measured times by kind of node.",
)
@_run(
    "--checkpoint-every",
    metavar="INTERVAL",
    help="How often to save a checkpoint: in steps (500), epochs (2epochs) or time (90s, 10min, "
    "1h).",
)
@_run(
    "--signal",
    type=Choice("signal", ("USR1", "USR2")),
    metavar="USR1|USR2",
    help="Signal to send before the time limit.",
)
@_run("--notice", type=click.INT, metavar="SECONDS", help="When to send it, before the limit.")
@_run("--max-restarts", type=click.INT, metavar="N", help="How often the job may be requeued.")
def submit(
    template: str | None,
    arguments: tuple[str, ...],
    config: str | None,
    components: tuple[str, ...],
    env_file: str | None,
    dry_run: bool,
    follow: bool,
    **flags: Any,
) -> None:
    """Submit a Slurm job: train, train_hetero, profile or evaluate.

    Writes the job's script, gives it to sbatch and prints the job's number. Arguments after '--'
    go to 'hetmp train' (or profile, evaluate) in the job. The run's folder is runs/NAME-NUMBER
    unless --run names another.

    \b
    Examples:
      hetmp submit train --dry-run
      hetmp submit profile --constraint a100 --gpus-per-task 1 \\
          -- resnet18 --batch-size 256
      hetmp submit train --nodes 1-4 --time 8:00:00 --follow \\
          -- --model resnet18 --data synthetic --batch-size 256 --epochs 90
      hetmp submit train_hetero --component partition=new,gpus_per_task=1 \\
          --component partition=cpu,nodes=2 -- --model resnet18 --data synthetic
      hetmp submit --config job.toml
    """
    from hetmp.cluster import mpi_vendor
    from hetmp.cluster.slurm import available, chosen_mpi_type
    from hetmp.tools.submit import Component, make_job, read_job, render
    from hetmp.tools.submit import follow as followed
    from hetmp.tools.submit import submit as submitted

    settings = read_job(config) if config else {}
    if "template" in settings and template is not None and template not in JOBS:
        arguments, template = (template, *arguments), None  # all of them stand behind the --
    template = template or settings.get("template")
    if template is None:
        raise HetmpError(f"give the kind of job: {', '.join(JOBS)}")
    flags["components"] = [Component.parse(text) for text in components]
    flags = {**flags, "arguments": arguments}
    flags = {name: value for name, value in flags.items() if value not in (None, (), [])}
    nodes = {name: flags.pop(name) for name in Component.model_fields if name in flags}
    settings = {name: value for name, value in settings.items() if name != "template"}
    job = make_job(str(template), {**settings, **flags}, nodes, config or "job")
    if not dry_run:
        _check_arguments(str(template), job)
    if job.mpi == "auto" and available() and not dry_run:
        job = job.model_copy(update={"mpi": chosen_mpi_type(mpi_vendor())})
    if env_file is None and ENV_FILE.is_file():
        env_file = str(ENV_FILE)
    script = render(template, job, env_file)
    if dry_run:
        click.echo(script, nl=False)
        return
    sent = submitted(str(template), job, script)
    run = f"; run: {sent.run}" if sent.run else ""
    click.echo(f"submitted job {sent.number}; log: {sent.log}{run}")
    if follow and followed(sent) not in ("COMPLETED", ""):
        raise SystemExit(1)
