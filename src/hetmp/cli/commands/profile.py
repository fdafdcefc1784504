"""``hetmp profile``."""

from pathlib import Path

import click

from hetmp.cli.command import command, option
from hetmp.cli.fields import field_options, image_options
from hetmp.cli.options import FILE, ModelName, check_folder, image_sizes
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError

KINDS = (
    "Folder of what devices were measured to take, by kind of node. What is measured now is kept "
    "there, for 'hetmp train --profiles'."
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
    help="How long the devices are measured; a slow one takes longer for its first share.",
)
@option("--filters-only", is_flag=True, help="Every layer follows scheme 'filters', none 'inputs'.")
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
    help="Of all these nodes, with --profiles (default: what Slurm or the host says).",
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
    and 'hetmp train --weights auto --profile FILE' use what it writes. With --profiles, what each
    kind of node takes is kept for later jobs on any mix of these kinds.

    \b
    Examples:
      mpirun -n 3 hetmp profile resnet18 --shape 3,32,32 --batch-size 100
      mpirun -n 3 hetmp profile resnet18 --shape 3,32,32 --profiles profiles
      hetmp profile --show profile.json
    """
    import torch
    from rich.console import Console

    from hetmp import models
    from hetmp.cluster import arranged, check_world
    from hetmp.cluster.device import choose_device, share_cores
    from hetmp.cluster.slowdown import check_slowdown
    from hetmp.cluster.slurm import node_kind
    from hetmp.planner.profiling import Budget, Library, Profile, Task, keep_kinds, profile_model
    from hetmp.planner.render import render_profile
    from hetmp.run.precision import autocast_of, casting
    from hetmp.slicing import Tuning
    from hetmp.slicing.graph import read_graph

    if (model is None) == (show is None):
        raise HetmpError("give either a MODEL to measure or --show FILE, one of them")
    if show is not None:
        kept = Profile.load(show)
        click.echo(f"{kept.model}, batch {kept.batch_size}, {kept.dtype}, {kept.created}")
        Console().print(render_profile(kept))
        return
    assert model is not None
    if kind is not None and profiles is None:
        raise HetmpError("--kind names nodes in the folder of --profiles: give both, or neither")
    if out is None and profiles is None:
        out = "profile.json"
    input_shape, count = image_sizes(model, shape, classes)
    group = Group()
    with group.together():
        check_world(group)
        if slowdown is not None:
            check_slowdown(slowdown, group.size)
        if autocast is not None and len(autocast) not in (1, group.size):
            raise HetmpError(f"autocast has {len(autocast)} entries for {group.size} ranks")
        if batch_size < 1:
            raise HetmpError(f"a batch has 1 image or more, got {batch_size}")
        if group.is_root and out is not None:
            check_folder(out)
    # As in training; there is one slowdown for each of the ranks as they were started.
    comm, order = arranged(None, group)
    group = Group(comm)
    with group.together():
        with torch.device("meta"):
            module = models.build(model, input_shape, count).to(getattr(torch, dtype))
            example = torch.empty((batch_size, *input_shape), dtype=getattr(torch, dtype))
        if profiles is not None:
            task = Task.of(model, read_graph(module, example), example, Tuning())
            library, own_kind = Library(Path(profiles), task), kind or node_kind()
    if profiles is not None:
        kinds = group.gather_texts(own_kind)
        with group.together():
            if group.is_root:
                for one in set(kinds):
                    library.check_writable(one)
    share_cores(group)
    precisions = [autocast[rank] for rank in order] if autocast and autocast[1:] else autocast
    with group.failing():
        used = choose_device(group, device)
        with casting(autocast_of(precisions, group), used):
            found = profile_model(
                module,
                example,
                group,
                name=model,
                device=used,
                budget=Budget(seconds, not filters_only),
                slowdown=slowdown[order[group.rank]] if slowdown else 1.0,
                told=group.say,
            )
    written = keep_kinds(library, group, kinds, found) if profiles is not None else []
    with group.together():
        if group.is_root and out is not None:
            found.save(out)
            written.append(Path(out))
    if group.is_root:
        Console().print(render_profile(found))
        for path in written:
            click.echo(f"wrote {path}")
