"""``hetmp submit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetmp.errors import HetmpError

if TYPE_CHECKING:
    from hetmp.submit import Job

ENV_FILE = Path("jobs", "env.sh")


def _command(template: str) -> click.Command:
    """hetmp's command that a template's job runs, to look at its arguments before it waits."""
    if template == "profile":
        from hetmp.cli.profile import profile

        return profile
    if template == "evaluate":
        from hetmp.cli.evaluate import evaluate

        return evaluate
    from hetmp.cli.train import train_command

    return train_command()


def _flags(option: click.Parameter) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _check_arguments(template: str, job: "Job") -> None:
    """Refuse what the job's command would refuse: now, and not after hours in the queue."""
    command = _command(template)
    context = command.make_context(f"hetmp {command.name}", list(job.arguments))
    if command.name == "train":
        from hetmp.cli.train import told_config

        told_config(
            context.params,
            out="run",
            profiles=job.profiles,
            checkpoint_every=job.checkpoint_every,
        )


class _Submit(click.Command):
    """A command that knows whose a flag is that was given to it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            template = next((word for word in args if not word.startswith("-")), "")
            flags = [flag for option in _command(template).params for flag in _flags(option)]
            if error.option_name not in flags:
                raise
            raise click.UsageError(
                f"{error.option_name} belongs to the job: put it behind --, as in "
                f"hetmp submit {template} -- {error.option_name} ...",
                ctx,
            ) from None


@click.command(cls=_Submit)
@click.argument("template", required=False)
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENT...]")
@click.option("--config", type=click.Path(), help="A job in a file (TOML); flags win over it.")
@click.option("--name", help="What the queue calls it.")
@click.option("--time", metavar="TIME", help="Time limit, as 8:00:00.")
@click.option("--nodes", metavar="N|MIN-MAX", help="Number of nodes, or as many as can be had.")
@click.option("--partition", help="The partition that they are in.")
@click.option("--constraint", help="Features that they must have.")
@click.option("--tasks-per-node", type=click.INT, help="Ranks on each node.")
@click.option("--cpus-per-task", type=click.INT, help="Cores for each rank.")
@click.option("--gpus-per-task", type=click.INT, help="GPUs for each rank, which uses one.")
@click.option("--mem", help="Memory of each node, as 16G.")
@click.option(
    "--component",
    "components",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="Nodes of one kind, as partition=new,nodes=2,gpus_per_task=1; once for each kind.",
)
@click.option("--account", help="Whom the site charges.")
@click.option("--qos", help="Quality of service.")
@click.option("--option", "options", multiple=True, metavar="--NAME=VALUE", help="Of sbatch.")
@click.option("--run", metavar="FOLDER", help="Of the run, to go on with an older one.")
@click.option("--profiles", metavar="FOLDER", help="What was measured of each kind of node.")
@click.option("--checkpoint-every", help="How often a checkpoint is saved, as 10min.")
@click.option("--signal", help="USR1 or USR2: says that the time is nearly up.")
@click.option("--notice", type=click.INT, help="How many seconds before the limit it does.")
@click.option("--max-restarts", type=click.INT, help="How often it may be queued again.")
@click.option("--mpi", help="What srun --mpi= is given, if not what fits.")
@click.option(
    "--env-file",
    type=click.Path(),
    help="What the job reads first (default: jobs/env.sh if there is one).",
)
@click.option("--dry-run", is_flag=True, help="Print the script, and submit nothing.")
@click.option("--follow", is_flag=True, help="Show the run's progress until the job ends.")
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

    It writes the job's script, gives it to sbatch and prints the job's number. What follows '--'
    goes to 'hetmp train' (or profile, evaluate) in the job. The run's folder is
    runs/NAME-NUMBER unless --run says another.

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
    from hetmp.comm import mpi_vendor
    from hetmp.slurm import available, chosen_mpi_type
    from hetmp.submit import TEMPLATES, Component, make_job, read_job, render
    from hetmp.submit import follow as followed
    from hetmp.submit import submit as submitted

    told = read_job(config) if config else {}
    if "template" in told and template is not None and template not in TEMPLATES:
        arguments, template = (template, *arguments), None  # all of them stand behind the --
    template = template or told.get("template")
    if template is None:
        raise HetmpError(f"say which job: {', '.join(TEMPLATES)}")
    flags["components"] = [Component.parse(text) for text in components]
    flags = {**flags, "arguments": arguments}
    flags = {name: value for name, value in flags.items() if value not in (None, (), [])}
    nodes = {name: flags.pop(name) for name in Component.model_fields if name in flags}
    told = {name: value for name, value in told.items() if name != "template"}
    job = make_job(str(template), {**told, **flags}, nodes, config or "job")
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
