"""``hetmp train``: a flag per field of the configuration, and a file of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from hetmp.cli.command import Command, Option
from hetmp.cli.options import FILE
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.run.stop_signals import EXIT_CODE

if TYPE_CHECKING:
    from hetmp.run.config import TrainConfig

CONFIG_FILE = "config_file"
PRINT_CONFIG = "print_config"
IN_A_FILE = "A run in a file"


def config_from_flags(values: Mapping[str, Any], **job: Any) -> "tuple[TrainConfig, str]":
    """Make the configuration from the command's parameters and their file; flags win.

    Args:
        values: the parameters by name, as click parsed them.
        job: flags set by a job; *values* win over them.

    Returns:
        The configuration, and a note on the file's versions, empty if they are the same.

    Raises:
        HetmpError: a file that cannot be read, a wrong value, or no model or data.
    """
    from hetmp.run.config import TrainConfig, train_config
    from hetmp.run.config_file import ConfigFile, flags_over, read_config
    from hetmp.run.versions import differing_versions

    present = {name: value for name, value in values.items() if value not in (None, ())}
    flags = job | {name: present[name] for name in TrainConfig.model_fields if name in present}
    for name, value in flags.items():
        if isinstance(TrainConfig.model_fields[name].default, dict):
            flags[name] = dict(value)
    path = values.get(CONFIG_FILE)
    file = read_config(path) if path else ConfigFile({}, {})
    settings = flags_over(file.fields, flags)
    for name, field in TrainConfig.model_fields.items():
        if field.is_required() and name not in settings:
            raise HetmpError(
                f"{name}: give --{name} NAME, or a --config file that sets it"
                + (f" ({path} does not)" if path else "")
            )
    return train_config(**settings), differing_versions(path, file.versions)


def _train(**values: Any) -> None:
    if values[PRINT_CONFIG]:
        from hetmp.run.config_file import config_text

        click.echo(config_text(config_from_flags(values)[0]), nl=False)
        return
    from hetmp.run.progress import silent

    group = Group()
    with group.together():  # a file may lie on some nodes alone
        config, note = config_from_flags(values)
    with silent(config.quiet):
        if note:
            group.say(note)
        _run_training(config, group)


def _run_training(config: "TrainConfig", group: Group) -> None:
    from hetmp.core.text import count_ranks
    from hetmp.run.train import train

    with group.failing():
        result = train(config)
    if result.stopped:
        group.say(
            f"stopped after step {result.steps} by a signal; continue the run in {config.out} "
            "with --resume auto"
        )
        raise SystemExit(EXIT_CODE)
    group.say(
        f"{100 * result.accuracy:.2f} % test accuracy after {result.steps} steps on "
        + (f"{result.ranks} of " if result.ranks < group.size else "")
        + count_ranks(group.size)
    )
    if config.out:
        group.say(f"wrote config.toml, metrics.jsonl, plan.json and model.h5 to {config.out}")


def config_option() -> Option:
    """Return the flag ``--config``."""
    return Option(
        ["--config", CONFIG_FILE],
        type=FILE,
        metavar="FILE",
        heading=IN_A_FILE,
        help="A run in a file (TOML), such as the config.toml of an older one; flags win.",
    )


def train_command() -> click.Command:
    """Make ``hetmp train``, with a flag per field of the configuration."""
    from hetmp.cli.fields import field_option
    from hetmp.run.config import TrainConfig

    options: list[click.Parameter] = [
        config_option(),
        Option(
            ["--print-config", PRINT_CONFIG],
            is_flag=True,
            heading=IN_A_FILE,
            help="Print such a file for this run, complete and with comments, and do not train.",
        ),
        *(field_option(name) for name in TrainConfig.model_fields),
    ]
    text = """Train a network, every rank with a slice of each layer's filters.

    --model and --data are required, here or in a file. Every other setting has a default. For
    signals that end a run so that it can be continued later, see --stop-signal.

    \b
    Examples:
      hetmp train --model digits --data digits
      mpirun -n 3 hetmp train --model digits --data digits --weights 70,25,5
      mpirun -n 3 hetmp train --model digits --data digits --weights auto
      mpirun -n 2 hetmp train --model paper-cifar --data synthetic --steps 20
      hetmp train --model digits --data digits --print-config > run.toml
      mpirun -n 3 hetmp train --config run.toml --lr 0.1 --out runs/first
    """
    short = "Train a network, every rank with a slice of each layer."
    return Command("train", params=options, callback=_train, help=text, short_help=short)
