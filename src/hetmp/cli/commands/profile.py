"""``hetmp profile``."""

from pathlib import Path

import click

from hetmp.cli.command import command, option
from hetmp.cli.fields import field_options, image_options
from hetmp.cli.options import FILE, ModelName, check_folder, image_sizes
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError

KINDS = (
    "Folder of measured times by kind of node. This measurement is stored there for "
    "'hetmp train --profiles'."
)


@command()
@click.argument("model", type=ModelName(), required=False)
@image_options
@field_options("batch_size", "dtype", "device", filled=True, heading="Options")
@field_options("autocast", heading="Options")
@option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for measuring; a slow device needs longer for its first share.",
)
@option("--filters-only", is_flag=True, help="Every layer follows scheme 'filters'.")
@option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="File to write (default: profile.json, or no file with --profiles).",
)
@field_options("profiles", heading="Options", text=KINDS)
@option(
    "--kind",
    metavar="NAME",
    help="Kind of all these nodes, with --profiles (default: from Slurm or the host).",
)
@option("--show", type=FILE, metavar="FILE", help="Show a profile instead of measuring one.")
@field_options("slowdown", heading="Options")
def profile(
    model: str | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    batch_size: int,
    dtype: str,
    device: str,
    autocast: tuple[str, ...] | None,
    seconds: float,
    filters_only: bool,
    out: str | None,
    profiles: str | None,
    kind: str | None,
    show: str | None,
    slowdown: tuple[float, ...] | None,
) -> None:
    """Measure a network's operations on every rank, and the links.

    MODEL is a name (see 'hetmp models') or package.module:function for your own. Start it with
    the ranks that will train, and with the batch size and precision of the training; 'hetmp plan'
    and 'hetmp train --weights auto --profile FILE' read the file. With --profiles, the times of
    each kind of node are stored for later jobs on any mix of these kinds.

    \b
    Examples:
      mpirun -n 3 hetmp profile resnet18 --shape 3,32,32 --batch-size 100
      mpirun -n 3 hetmp profile resnet18 --shape 3,32,32 --profiles profiles
      hetmp profile --show profile.json
    """
    from rich.console import Console

    from hetmp.planner.profiling import Profile
    from hetmp.planner.render import render_profile
    from hetmp.tools.profile import ProfileConfig, profile_network

    if (model is None) == (show is None):
        raise HetmpError("give either a MODEL to measure or --show FILE")
    if show is not None:
        stored = Profile.load(show)
        click.echo(f"{stored.model}, batch {stored.batch_size}, {stored.dtype}, {stored.created}")
        Console().print(render_profile(stored))
        return
    assert model is not None
    if out is None and profiles is None:
        out = "profile.json"
    input_shape, count = image_sizes(model, shape, classes)
    config = ProfileConfig(
        model=model,
        input_shape=input_shape,
        classes=count,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        autocast=autocast,
        seconds=seconds,
        filters_only=filters_only,
        profiles=Path(profiles) if profiles is not None else None,
        kind=kind,
        slowdown=slowdown,
    )
    group = Group()
    with group.together():
        if group.is_root and out is not None:
            check_folder(out)
    measured, files = profile_network(config, Path(out) if out is not None else None)
    if group.is_root:
        Console().print(render_profile(measured))
        for path in files:
            click.echo(f"wrote {path}")
