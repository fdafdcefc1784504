"""``hetmp plan``."""

import re
from typing import Any

import click

from hetmp.cli.command import command, option, remark
from hetmp.cli.fields import image_options
from hetmp.cli.names import OPTIMIZERS
from hetmp.cli.options import FILE, Choice, ModelName, check_folder, image_sizes
from hetmp.core.errors import HetmpError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class _Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, for example 500M or 4GiB."""

    name = "bytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return *value*, ``4GiB`` say, in bytes; *param* and *ctx* are for the error message."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a number of bytes such as 500M or 4GiB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


@command()
@click.argument("model", type=ModelName())
@option(
    "--profile",
    "profiles",
    type=FILE,
    metavar="FILE",
    multiple=True,
    help="Profile of these ranks, from 'hetmp profile'; repeat it to join the ranks of several.",
)
@option(
    "--ranks-from",
    type=FILE,
    metavar="FILE",
    help="A cluster (TOML) described by profiles of its kinds of nodes.",
)
@image_options
@option(
    "--memory-limit", type=_Bytes(), metavar="BYTES", help="Most memory of a rank, such as 4GiB."
)
@option(
    "--objective",
    type=Choice("objective", ("time", "memory")),
    metavar="time|memory",
    default="time",
    show_default=True,
    help="Minimize the time of a step, or share by the ranks' memory.",
)
@option(
    "--optimizer",
    type=Choice("optimizer", OPTIMIZERS),
    metavar="NAME",
    default="sgd",
    show_default=True,
    help="Optimizer: its state counts as memory.",
)
@option("--filters-only", is_flag=True, help="Every layer follows scheme 'filters'.")
@option("--keep-all", is_flag=True, help="Give every rank a share.")
@option(
    "--out",
    type=FILE,
    metavar="FILE",
    default="plan.json",
    show_default=True,
    help="File to write.",
)
@option("--json", "as_json", is_flag=True, help="Print JSON: the prediction.")
def plan(
    model: str,
    profiles: tuple[str, ...],
    ranks_from: str | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    memory_limit: int | None,
    objective: str,
    optimizer: str,
    filters_only: bool,
    keep_all: bool,
    out: str,
    as_json: bool,
) -> None:
    """Choose every rank's shares for the least time of a step.

    MODEL is a name (see 'hetmp models') or package.module:function for your own, as it was
    profiled. Runs without MPI, and allocates no parameters. The plan is a file that can be edited
    by hand; 'hetmp train --plan FILE' uses it.

    \b
    Examples:
      hetmp plan resnet18 --shape 3,32,32 --classes 10 --profile profile.json
      hetmp plan resnet50 --ranks-from cluster.toml --memory-limit 16GiB
    """
    from rich.console import Console

    from hetmp import models
    from hetmp.optim import numbers_kept
    from hetmp.planner import PlanOptions, make_plan, summary
    from hetmp.planner.cluster_file import cluster_profile, joined_profiles
    from hetmp.planner.profiling import Profile
    from hetmp.planner.render import render_plan
    from hetmp.slicing.graph import read_graph

    if bool(profiles) == (ranks_from is not None):
        raise HetmpError("give either --profile FILE or --ranks-from FILE to describe the ranks")
    check_folder(out)
    profile = (
        cluster_profile(ranks_from)
        if ranks_from is not None
        else joined_profiles([Profile.load(path) for path in profiles])
    )
    input_shape, count = image_sizes(model, shape, classes)
    module, example = models.outline(
        model, input_shape, count, batch_size=profile.batch_size, dtype=profile.dtype, say=remark
    )
    options = PlanOptions(
        memory_limit,
        "memory" if objective == "memory" else "time",
        schemes=not filters_only,
        leave_out=not keep_all,
        optimizer_states=numbers_kept(optimizer, {"momentum": 0.9} if optimizer == "sgd" else {}),
    )
    planned = make_plan(read_graph(module, example), profile, options)
    planned.plan.save(out)
    if as_json:
        click.echo(summary(planned))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 140
    sizes = "×".join(str(size) for size in input_shape)
    console.print(f"{model}, batch {profile.batch_size} of {sizes}")
    console.print(render_plan(planned, width=console.width))
    click.echo(f"wrote {out}")
