"""``hetmp evaluate``."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hetmp.cli.command import command, option
from hetmp.cli.fields import used_options
from hetmp.cli.options import FILE, PATH, check_folder
from hetmp.cluster import Group
from hetmp.core.files import replacing


@command()
@click.argument("checkpoint", type=PATH)
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@option("--out", type=FILE, metavar="FILE", help="File to write: the output of --json.")
@used_options
def evaluate(checkpoint: str, as_json: bool, out: str | None, **settings: Any) -> None:
    """Compute loss and accuracy of a checkpoint on the test set.

    CHECKPOINT is a file, or a run's folder: then its model.h5, else its newest sound checkpoint.
    The figures are the same on any number of ranks. Files of 'hetmp train' name their network and
    data; for other files, give --model and --data. A network of your own always needs --model, so
    that no file chooses which code is run.

    \b
    Examples:
      hetmp evaluate runs/demo
      hetmp evaluate runs/long/checkpoints/latest.h5 --json
      mpirun -n 3 hetmp evaluate runs/demo --weights 70,25,5
      hetmp evaluate mine.h5 --model mymodels:build --data digits
    """
    from hetmp.core.text import count_ranks
    from hetmp.run.evaluate import evaluate_checkpoint

    group = Group()
    with group.together():
        if out is not None and group.is_root:
            check_folder(out)
    with group.failing():
        result = evaluate_checkpoint(Path(checkpoint), settings)
    values = asdict(result)
    if not math.isfinite(result.loss):
        values["loss"] = None  # JSON has no word for it
    text = json.dumps(values, indent=1)
    with group.together():
        if out is not None and group.is_root:
            with replacing(Path(out)) as beside:
                beside.write_text(text + "\n")
    if as_json:
        group.say(text)
        return
    for why in result.passed_over:
        group.say(f"passed over: {why}")
    steps = "" if result.steps is None else f" ({result.steps} steps)"
    group.say(
        f"{100 * result.accuracy:.2f} % test accuracy, loss {result.loss:.4f}, over "
        f"{result.images} images, on {count_ranks(result.ranks)}: {result.file}{steps}"
    )
