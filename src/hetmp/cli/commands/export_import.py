"""``hetmp export`` and ``hetmp import``: checkpoints to and from torch's own files."""

import click

from hetmp.cli.command import command, option
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
@option(
    "--strip-prefix", metavar="NAME", help="Take the tensors below NAME, without it, and no others."
)
@option("--keep-prefix", is_flag=True, help="Take all names as they are.")
def import_command(
    source: str, checkpoint: str, strip_prefix: str | None, keep_prefix: bool
) -> None:
    """Make a checkpoint from a state_dict of torch.

    SOURCE is a file of torch.save. Nothing but tensors and plain values is read from it: no pickle
    runs code. What wrappers put before all names (module., _orig_mod., model.) is taken off. Runs
    without MPI.

    \b
    Examples:
      hetmp import model.pt model.h5
      hetmp import lightning.ckpt model.h5 --strip-prefix model
    """
    from hetmp.checkpoint.torch_files import import_state

    done = import_state(source, checkpoint, strip_prefix=strip_prefix, keep_prefix=keep_prefix)
    click.echo(f"wrote {done.count} tensors to {checkpoint}")
    if done.prefix:
        hint = "" if strip_prefix else " (--keep-prefix leaves it there)"
        click.echo(f"took {done.prefix!r} off their names{hint}")
    if done.left_out:
        names = ", ".join(done.left_out[:5]) + ", ..." * (len(done.left_out) > 5)
        click.echo(f"left out {len(done.left_out)} without it: {names}")
