"""``hetmp models``."""

import click

from hetmp.cli.command import command


@command()
def models() -> None:
    """List the networks that hetmp knows by name.

    They are what MODEL and --model take, with the images and classes they were published for. A
    network of your own is package.module:function, called with (input_shape, classes).

    \b
    Example:
      hetmp models
    """
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
