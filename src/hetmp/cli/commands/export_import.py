"""``hetmp export`` and ``hetmp import``: checkpoints to and from torch's own files."""

import click

from hetmp.cli.command import command
from hetmp.cli.options import FILE


@command("export")
@click.argument("checkpoint", type=FILE)
@click.argument("target", type=FILE)
def export_command(checkpoint: str, target: str) -> None:
    """Write a checkpoint's network as a state_dict of torch.

    torch.load reads the file. The numbers are compared with their digests first. Runs without MPI.

    \b
    Example:
      hetmp export runs/demo/model.h5 model.pt
    """
    from hetmp.checkpoint.torch_files import export_state

    count = export_state(checkpoint, target)
    click.echo(f"wrote {count} tensors to {target}: torch.load({target!r}, weights_only=True)")


@command("import")
@click.argument("source", type=FILE)
@click.argument("checkpoint", type=FILE)
def import_command(source: str, checkpoint: str) -> None:
    """Make a checkpoint from a state_dict of torch.

    SOURCE is a file of torch.save. Nothing but tensors and plain values is read from it: no pickle
    runs code. Runs without MPI.

    \b
    Example:
      hetmp import model.pt model.h5
    """
    from hetmp.checkpoint.torch_files import import_state

    count = import_state(source, checkpoint)
    click.echo(f"wrote {count} tensors to {checkpoint}")
