"""``hetmp predict``."""

from pathlib import Path
from typing import Any

import click

from hetmp.cli.command import command, option
from hetmp.cli.fields import used_options
from hetmp.cli.options import FILE, PATH, Choice
from hetmp.cluster import Group


@command()
@click.argument("checkpoint", type=PATH)
@option(
    "--out",
    type=FILE,
    metavar="FILE",
    required=True,
    help="File to write: .csv, or .h5 for HDF5.",
)
@option(
    "--part",
    type=Choice("part", ("test", "train")),
    metavar="test|train",
    default="test",
    show_default=True,
    help="Part of the data set to use.",
)
@option(
    "--images",
    type=PATH,
    metavar="PATH",
    help="A folder of pictures without classes, or one picture, instead of the data set.",
)
@used_options
def predict(checkpoint: str, out: str, part: str, images: str | None, **settings: Any) -> None:
    """Write class and probability of every image to CSV or HDF5.

    CHECKPOINT is a file, or a run's folder: then its model.h5, else its newest sound checkpoint.
    The predictions are the same on any number of ranks. The images are the test images of the
    data set that the network was trained on, unless you give others.

    \b
    Examples:
      hetmp predict runs/demo --out predictions.csv
      hetmp predict runs/demo --images holiday --out holiday.csv
      mpirun -n 3 hetmp predict runs/demo --part train --out train.h5
    """
    from hetmp.core.text import count_ranks
    from hetmp.run.predict import predict as predicted

    group = Group()
    with group.failing():
        result = predicted(
            Path(checkpoint),
            Path(out),
            settings,
            part=part,
            images=Path(images) if images else None,
        )
    for why in result.passed_over:
        group.say(f"passed over: {why}")
    right = (
        ""
        if result.accuracy is None
        else f", {100 * result.accuracy:.2f} % of the labels predicted"
    )
    group.say(
        f"wrote the classes of {result.images} images to {result.out}{right}, on "
        f"{count_ranks(result.ranks)}: {result.file}"
    )
