"""``hetmp bench``."""

import sys

import click

from hetmp.cli.command import command, option
from hetmp.cli.fields import field_options, image_options
from hetmp.cli.options import PATH, ModelName, Weights, image_sizes
from hetmp.cluster import Group


@command()
@click.argument("model", type=ModelName())
@option(
    "--weights",
    type=Weights(("equal",)),
    metavar="X,X,...|FILE|equal",
    help="Relative speeds, one per rank, for example 70,25,5, or a file of them (default: equal).",
)
@field_options("schemes", heading="Options")
@image_options
@option(
    "--batch-size",
    type=click.INT,
    metavar="N",
    default=100,
    show_default=True,
    help="Images per step, over all ranks.",
)
@option(
    "--repeats", type=click.INT, metavar="N", default=15, help="Turns to measure (default: 15)."
)
@option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for measuring; when it is over, no further turn begins.",
)
@option("--data-parallel", is_flag=True, help="Also measure torch's data parallelism.")
@option("--only", metavar="NAME,...", help="Measure these variants only, or schemes.")
@option("--append", type=PATH, metavar="FILE", help="Append the results to a file, as a line.")
@field_options("slowdown", heading="Options")
def bench(
    model: str,
    weights: tuple[float, ...] | str | None,
    schemes: str | dict[str, str] | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    batch_size: int,
    repeats: int,
    seconds: float | None,
    data_parallel: bool,
    only: str | None,
    append: str | None,
    slowdown: tuple[float, ...] | None,
) -> None:
    """Compare a training step with other ways to compute it.

    \b
    sliced                      as 'hetmp train' runs it
    sliced again                the same once more: shows the noise
    floor                       no exchange: compute only
    plain exchange              plain collectives on packed copies
    one process, NCHW           the whole network with the cores of all ranks,
    one process, channels_last    in both memory formats
    data parallel               torch's, equal batches      (--data-parallel)
    data parallel, weighted     batches by --weights        (--data-parallel)

    With --only, also: no shared memory, no overlap, no channels_last (sliced without one of
    these), regather and rounded (sliced with one); and schemes, as names of their own: filters,
    batch, batch:K, or a file of a plan or of schemes. All the others follow --schemes.

    Runs on CPUs only. The variants take turns. 'sliced / this' is the ratio of medians (without
    sliced, to the first of the schemes); its 95 % interval is shown from 6 repeats on.

    \b
    Examples:
      mpirun -n 2 hetmp bench paper-cifar --batch-size 100
      mpirun -n 3 hetmp bench vgg11 --weights 3,3,1 --schemes batch:4
      mpirun -n 2 hetmp bench vgg11 --only filters,batch:4,plan.json --seconds 300
      mpirun -n 2 hetmp bench paper-cifar --only sliced,floor --append a.jsonl
    """
    import shlex
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from hetmp.tools.bench import (
        BenchConfig,
        append_result,
        check_appendable,
        rows,
        split_names,
        summary,
        turn_view,
    )
    from hetmp.tools.bench import bench as measured

    input_shape, count = image_sizes(model, shape, classes)
    group = Group()
    with group.together():
        if append and group.is_root:
            check_appendable(Path(append))
    config = BenchConfig(
        model=model,
        input_shape=input_shape,
        classes=count,
        weights=weights if isinstance(weights, tuple) else (1.0,) * group.size,
        schemes=schemes or "filters",
        batch_size=batch_size,
        repeats=repeats,
        slowdown=slowdown,
        only=split_names(only) if only else None,
        data_parallel=data_parallel,
        seconds=seconds,
    )
    with group.failing():
        result = measured(config, view=turn_view() if group.is_root else None)
    if not group.is_root:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    headings = ["ms a step", "quartiles"]
    if result.base is not None:
        headings += [f"{result.base} / this", "95 %"]
    table.add_column("variant", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows(result):
        table.add_row(*row[: 1 + len(headings)])
    sizes = "×".join(str(size) for size in input_shape)
    click.echo(
        f"{model}, batch {batch_size} of {sizes}, "
        f"weights {','.join(f'{share:g}' for share in config.weights)}"
        + (f", schemes {_in_words(schemes)}" if schemes and "sliced" in result.received else "")
        + "; threads: "
        f"{result.threads[0]} a rank, {result.threads[1]} in one process"
    )
    if slowdown:
        click.echo("ranks slowed on purpose by " + ", ".join(f"{s:g}" for s in slowdown))
    Console().print(table)
    for line in summary(result):
        click.echo(line)
    if append:
        append_result(Path(append), result, shlex.join(["hetmp", *sys.argv[1:]]))
        click.echo(f"added a line to {append}")


def _in_words(schemes: str | dict[str, str]) -> str:
    return schemes if isinstance(schemes, str) else f"of {len(schemes)} layers from a file"
