"""The commands: parsing and printing only.

Exit codes: 0 done, 1 the job failed, 2 bad input.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import UnionType
from typing import Any, Union, get_args, get_origin

import click

import hetmp
from hetmp.comm import AgreedError, Group, report, speaks_first
from hetmp.errors import HetmpError, unknown_name


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    def __init__(self, kind: Callable[[str], Any], name: str) -> None:
        self._kind, self.name = kind, name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 70,25,5", param, ctx)


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


@commands.command()
def models() -> None:
    """List the networks that --model knows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from hetmp.models import catalog

    table = Table(box=box.SIMPLE)
    for heading in ("name", "what it is", "input", "classes", "parameters"):
        table.add_column(
            heading, justify="right" if heading in ("classes", "parameters") else "left"
        )
    for row in catalog():
        shape = "×".join(str(size) for size in row.input_shape)
        table.add_row(row.name, row.description, shape, str(row.classes), f"{row.parameters:,}")
    Console().print(table)
    click.echo("Your own: --model package.module:function, called with (input_shape, classes).")


def _sizes(
    model: str, shape: tuple[int, ...] | None, classes: int | None
) -> tuple[tuple[int, ...], int]:
    """The image's shape and the classes as they are told, else as published."""
    from hetmp import models

    published_shape, published_classes = models.published(model)
    input_shape, count = shape or published_shape, classes or published_classes
    if input_shape is None or count is None:
        raise HetmpError(f"{model} has no published sizes: give --shape and --classes")
    return input_shape, count


@commands.command()
@click.argument("model")
@click.option("--weights", type=_Numbers(float, "numbers"), help="Relative speeds, one per rank.")
@click.option("--plan", type=click.Path(), help="A plan file (JSON) instead of weights.")
@click.option(
    "--shape",
    type=_Numbers(int, "integers"),
    help="Of one image: channels, then sides, for example 3,32,32 (default: as published).",
)
@click.option("--classes", type=click.INT, help="How many classes (default: as published).")
@click.option("--all", "everything", is_flag=True, help="Show operations that move nothing, too.")
@click.option("--strict", is_flag=True, help="Refuse operations that hetmp has no rule for.")
def explain(
    model: str,
    weights: tuple[float, ...] | None,
    plan: str | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    everything: bool,
    strict: bool,
) -> None:
    """Show how a network is cut: each layer's partition, and what moves between the ranks.

    MODEL is a name (see 'hetmp models') or package.module:function for your own. Runs without
    MPI, and takes no memory for parameters.

    \b
    Examples:
      hetmp explain resnet50 --weights 70,25,5
      hetmp explain mymodels:build --shape 3,64,64 --classes 10 --weights 2,1
    """
    import torch
    from rich.console import Console

    from hetmp import models
    from hetmp.channel_groups import plan_from_weights
    from hetmp.explain import explain as explained
    from hetmp.explain import render
    from hetmp.graph import read_graph
    from hetmp.plan import Plan

    if (weights is None) == (plan is None):
        raise HetmpError("say how the work is shared: either --weights 70,25,5 or --plan FILE")
    input_shape, count = _sizes(model, shape, classes)
    with torch.device("meta"):
        module = models.build(model, input_shape, count)
    graph = read_graph(module, torch.empty((2, *input_shape), device="meta"))
    if strict:
        graph.check_strict()
    chosen = Plan.load(plan) if plan else plan_from_weights(graph, weights or ())
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(f"{model}, {count} classes, images of {'×'.join(map(str, input_shape))}")
    narrow = console.width < 100
    console.print(render(explained(graph, chosen), everything=everything, narrow=narrow))


@commands.command()
@click.argument("model")
@click.option("--weights", type=_Numbers(float, "numbers"), help="Relative speeds, one per rank.")
@click.option("--shape", type=_Numbers(int, "integers"), help="Of one image, for example 3,32,32.")
@click.option("--classes", type=click.INT, help="How many classes (default: as published).")
@click.option("--batch-size", type=click.INT, default=100, show_default=True, help="Images a step.")
@click.option("--repeats", type=click.INT, default=15, show_default=True, help="Turns that count.")
@click.option("--data-parallel", is_flag=True, help="Measure torch's data parallelism, too.")
@click.option("--only", metavar="NAME,NAME", help="Measure these variants only.")
@click.option(
    "--slowdown",
    type=_Numbers(float, "numbers"),
    help="Test aid: how many times slower each rank behaves than it is.",
)
@click.option("--json", "json_file", type=click.Path(), help="Append the results as a line.")
def bench(
    model: str,
    weights: tuple[float, ...] | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    batch_size: int,
    repeats: int,
    data_parallel: bool,
    only: str | None,
    slowdown: tuple[float, ...] | None,
    json_file: str | None,
) -> None:
    """Measure a training step beside other ways to do the same step. On the CPU.

    \b
    sliced                      as 'hetmp train' runs it
    sliced again                the same once more: shows the noise
    floor                       no exchange: what is left is compute
    plain exchange              plain collectives on packed copies
    one process, NCHW           the whole network with the cores of all ranks,
    one process, channels_last    in both memory formats
    data parallel               torch's, equal batches      (--data-parallel)
    data parallel, weighted     batches by --weights        (--data-parallel)

    With --only, also: no shared memory, no overlap, no channels_last (sliced without one of
    these), regather and rounded (sliced with one).

    The variants take turns. 'sliced / this' is the ratio of medians; its 95 % interval is shown
    from 6 repeats on.

    \b
    Examples:
      mpirun -n 2 hetmp bench paper-cifar --batch-size 100
      mpirun -n 2 hetmp bench paper-cifar --only sliced,floor --json results.jsonl
    """
    import shlex
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from hetmp.bench import (
        BenchConfig,
        append_result,
        check_appendable,
        rows,
        split_names,
        summary,
    )
    from hetmp.bench import bench as measured

    input_shape, count = _sizes(model, shape, classes)
    group = Group()
    with group.together():
        if json_file and group.is_root:
            check_appendable(Path(json_file))
    config = BenchConfig(
        model=model,
        input_shape=input_shape,
        classes=count,
        weights=weights or (1.0,) * group.size,
        batch_size=batch_size,
        repeats=repeats,
        slowdown=slowdown,
        only=split_names(only) if only else None,
        data_parallel=data_parallel,
    )
    try:
        result = measured(config)
    except AgreedError:
        raise
    except Exception as error:
        group.fail(error)
    if not group.is_root:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("variant", "ms a step", "quartiles", "sliced / this", "95 %"):
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for row in rows(result):
        table.add_row(*row)
    sizes = "×".join(str(size) for size in input_shape)
    click.echo(
        f"{model}, batch {batch_size} of {sizes}, "
        f"weights {','.join(f'{share:g}' for share in config.weights)}; threads: "
        f"{result.threads[0]} a rank, {result.threads[1]} in one process"
    )
    if slowdown:
        click.echo("ranks slowed on purpose by " + ", ".join(f"{s:g}" for s in slowdown))
    Console().print(table)
    for line in summary(result):
        click.echo(line)
    if json_file:
        append_result(Path(json_file), result, shlex.join(["hetmp", *sys.argv[1:]]))
        click.echo(f"added a line to {json_file}")


def _train(**values: Any) -> None:
    from hetmp.config import train_config

    config = train_config(**values)
    from hetmp.train import count_ranks, train

    group = Group()
    try:
        result = train(config)
    except AgreedError:
        raise
    except Exception as error:
        group.fail(error)
    group.say(
        f"{100 * result.accuracy:.2f} % test accuracy after {result.steps} steps on "
        f"{count_ranks(group.size)}"
    )
    if config.out:
        group.say(f"wrote metrics.jsonl, plan.json and model.h5 to {config.out}")


def _train_command() -> click.Command:
    """``hetmp train``, with a flag per field of the configuration."""
    from hetmp.config import TrainConfig

    options: list[click.Parameter] = [
        _option(name, field) for name, field in TrainConfig.model_fields.items()
    ]
    text = """Train a network, every rank with a slice of each layer's filters.

    \b
    Examples:
      hetmp train --model digits --data digits
      mpirun -n 3 hetmp train --model digits --data digits --weights 70,25,5
      mpirun -n 2 hetmp train --model paper-cifar --data synthetic --steps 20
    """
    return click.Command("train", params=options, callback=_train, help=text)


def _option(name: str, field: Any) -> click.Option:
    from hetmp.config import CHOICES

    flag = "--" + name.replace("_", "-")
    kind = _plain(field.annotation)
    text = field.description.replace("`", "'")
    if kind is bool:
        return click.Option([flag], is_flag=True, default=None, help=text)
    if field.default is not None and not field.is_required():
        text = f"{text.rstrip('.')} (default: {field.default})."
    types: dict[Any, Any] = {
        int: click.INT,
        float: click.FLOAT,
        (tuple, float): _Numbers(float, "numbers"),
        (tuple, int): _Numbers(int, "integers"),
    }
    return click.Option(
        [flag],
        type=types.get(kind, click.STRING),
        metavar="|".join(CHOICES[name]) if name in CHOICES else None,
        required=field.is_required(),
        help=text,
    )


def _plain(annotation: Any) -> Any:
    """The type under ``Annotated`` and ``| None``; (tuple, item) for tuples."""
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is tuple:
        return (tuple, _plain(get_args(annotation)[0]))
    if hasattr(annotation, "__metadata__"):
        return _plain(annotation.__origin__)
    return annotation


commands.add_command(_train_command())


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
    sys.exit(code)


if __name__ == "__main__":
    main()
