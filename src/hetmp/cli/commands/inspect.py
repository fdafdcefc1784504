"""``hetmp inspect``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hetmp.cli.command import command, option
from hetmp.cli.options import FILE
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import unknown_name

if TYPE_CHECKING:
    from hetmp.checkpoint.catalog import Stored


@command()
@click.argument("files", nargs=-1, required=True, metavar="FILE [OTHER]", type=FILE)
@option("--all", "everything", is_flag=True, help="Also show the optimizer's tensors.")
@option("--tensor", metavar="NAME", help="Show statistics and a histogram of one tensor.")
@option("--diff", is_flag=True, help="Show the differences between FILE and OTHER.")
@option("--verify", is_flag=True, help="Compare all numbers with their digests.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    files: tuple[str, ...],
    everything: bool,
    tensor: str | None,
    diff: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Show the contents of a checkpoint.

    Runs without MPI and without torch; a damaged or malicious file is refused before memory is
    allocated.

    \b
    Examples:
      hetmp inspect runs/demo/model.h5
      hetmp inspect runs/demo/model.h5 --tensor features.conv1.weight
      hetmp inspect --diff runs/a/model.h5 runs/b/model.h5
      hetmp inspect --verify runs/demo/checkpoints/latest.h5
    """
    from rich.console import Console

    from hetmp.checkpoint import show
    from hetmp.checkpoint.catalog import opened
    from hetmp.checkpoint.statistics import difference

    if len(files) != (2 if diff else 1):
        raise HetmpError("give one FILE, or two with --diff")
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
    with opened(Path(files[0])) as catalog:
        if diff:
            with opened(Path(files[1])) as other:
                names = dict.fromkeys([*catalog.stored, *other.stored])
                differences = [difference(catalog, other, name) for name in names]
            if as_json:
                click.echo(json.dumps([asdict(row) for row in differences], indent=1))
            else:
                console.print(show.differences(differences))
            return
        if verify:
            for stored in catalog.stored.values():
                catalog.verify(stored)
            click.echo(f"sound: {len(catalog.stored)} datasets of {files[0]} match their digests")
        elif tensor is not None:
            console.print(show.one_tensor(catalog, _stored(catalog.stored, tensor)))
        elif as_json:
            click.echo(show.as_json(catalog))
        else:
            console.print(show.overview(catalog, everything=everything))


def _stored(stored: "dict[str, Stored]", name: str) -> "Stored":
    """Return the dataset of a name, with or without its group."""
    for path in (name.lstrip("/"), f"model/{name}", f"buffers/{name}", f"optimizer/{name}"):
        if path in stored:
            return stored[path]
    raise unknown_name("tensor", name, [path.partition("/")[2] or path for path in stored])
