"""``hetmp trace``."""

from pathlib import Path
from typing import Any

import click

from hetmp.cli.command import Command, Option
from hetmp.cli.commands.train import config_from_flags, config_option
from hetmp.cli.fields import field_option
from hetmp.cli.options import FILE, check_folder
from hetmp.cluster import Group

RECORDED, SKIPPED, TARGET = "recorded", "skipped", "target"

LEFT_OUT = (
    "epochs", "steps", "out", "metrics", "checkpoint_every", "keep", "keep_every", "save_behind",
    "on_save_error", "stop_signal", "resume", "watch", "view",
)  # fmt: skip
"""Settings of a run that a trace ignores: it takes a few steps and saves nothing of the run."""


def _trace(**values: Any) -> None:
    from rich.console import Console

    from hetmp.run.progress import silent
    from hetmp.tools.trace import trace
    from hetmp.tools.trace.show import render_trace

    group = Group()
    path = Path(values.pop(TARGET))
    recorded, skipped = values.pop(RECORDED), values.pop(SKIPPED)
    with group.together():
        if group.is_root:
            check_folder(str(path))
        config, note = config_from_flags(values)
    with silent(config.quiet):
        if note:
            group.say(note)
        with group.failing():
            traced = trace(config, path, steps=recorded, skip=skipped)
        if group.is_root:
            Console().print(render_trace(traced, path, recorded))


def trace_command() -> click.Command:
    """Make ``hetmp trace``, with the flags of a run's configuration that apply to it."""
    from hetmp.run.config import TrainConfig

    own = "The trace"
    options: list[click.Parameter] = [
        config_option(),
        Option(
            ["--steps", RECORDED],
            type=click.IntRange(min=1),
            metavar="N",
            default=3,
            show_default=True,
            heading=own,
            help="How many steps to record.",
        ),
        Option(
            ["--skip", SKIPPED],
            type=click.IntRange(min=0),
            metavar="N",
            default=2,
            show_default=True,
            heading=own,
            help="How many steps to take before that: the first ones allocate memory.",
        ),
        Option(
            ["--out", TARGET],
            type=FILE,
            metavar="FILE",
            default="trace.json",
            show_default=True,
            heading=own,
            help="File to write; compressed if its name ends in .gz.",
        ),
        *(field_option(name) for name in TrainConfig.model_fields if name not in LEFT_OUT),
    ]
    text = """Record a few steps on all ranks, on one clock.

    Writes what every rank does and when, in the Chrome trace format: forward, backward, each
    exchange with its bytes and partners, and waiting. Open the file at ui.perfetto.dev, which
    reads it in the browser and uploads nothing. The trained network is not saved.

    \b
    Examples:
      mpirun -n 3 hetmp trace --model digits --data digits --weights 70,25,5
      mpirun -n 3 hetmp trace --config runs/first/config.toml --out first.json.gz
    """
    return Command("trace", params=options, callback=_trace, help=text)
