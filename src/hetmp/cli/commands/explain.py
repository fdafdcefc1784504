"""``hetmp explain``."""

import click

from hetmp.cli.command import command, option, remark
from hetmp.cli.fields import field_options, image_options
from hetmp.cli.options import ModelName, Weights, image_sizes
from hetmp.core.errors import HetmpError


@command()
@click.argument("model", type=ModelName())
@option(
    "--weights",
    type=Weights(()),
    metavar="X,X,...|FILE",
    help="Relative speeds, one per rank, for example 70,25,5, or a file of them.",
)
@field_options("schemes", "plan", heading="Options")
@image_options
@option(
    "--batch-size",
    type=click.INT,
    metavar="N",
    help="Images per step, over all ranks (default: bytes are those of one image).",
)
@option("--all", "everything", is_flag=True, help="Also show operations that move nothing.")
@field_options("strict", "no_verify", heading="Options")
def explain(
    model: str,
    weights: tuple[float, ...] | None,
    schemes: str | dict[str, str] | None,
    plan: str | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    batch_size: int | None,
    everything: bool,
    strict: bool | None,
    no_verify: bool | None,
) -> None:
    """Show how a network is cut, and what moves between the ranks.

    MODEL is a name (see 'hetmp models') or package.module:function for your own. Runs without
    MPI, and allocates no parameters. But a network of your own is also built and run beside what
    was read of it, on two images, unless --no-verify.

    \b
    Examples:
      hetmp explain resnet50 --weights 70,25,5
      hetmp explain resnet50 --weights 70,25,5 --schemes batch:20 --batch-size 64
      hetmp explain mymodels:build --shape 3,64,64 --classes 10 --weights 2,1
    """
    from rich.console import Console

    from hetmp import models
    from hetmp.models.outline import built_on_cpu
    from hetmp.slicing.channel_groups import plan_from_weights
    from hetmp.slicing.graph import read_graph
    from hetmp.slicing.plan import Plan
    from hetmp.slicing.verification import NOT_ASKED, verify
    from hetmp.tools.explain import explain as explained
    from hetmp.tools.explain import render

    if (weights is None) == (plan is None):
        raise HetmpError("give either --weights 70,25,5 or --plan FILE")
    if batch_size is not None and batch_size < 1:
        raise HetmpError(f"batch_size must be 1 or more, got {batch_size}")
    if plan is not None and schemes is not None:
        raise HetmpError("a plan has the schemes of its layers: give --schemes only with --weights")
    input_shape, count = image_sizes(model, shape, classes)
    graph = read_graph(*models.outline(model, input_shape, count, dtype="float32", say=remark))
    if strict:
        graph.check_strict()
    verification = "a network of hetmp's own: verified when it is sliced"
    if ":" in model:
        own = None if no_verify else built_on_cpu(model, input_shape, count)
        verification = str(NOT_ASKED if own is None else verify(graph, own.float(), {}))
    chosen = (
        Plan.load(plan) if plan else plan_from_weights(graph, weights or (), schemes or "filters")
    )
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(f"{model}, {count} classes, images of {'×'.join(map(str, input_shape))}")
    narrow = console.width < 100
    explanation = explained(graph, chosen, batch_size)
    console.print(render(explanation, everything=everything, narrow=narrow))
    console.print(verification, highlight=False)
