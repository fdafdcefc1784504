"""``hetmp train``: a flag per field of the configuration, and a file of them."""

from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import click

from hetmp.cli.options import KeyValue, Numbers, Weights
from hetmp.comm import Group
from hetmp.errors import HetmpError
from hetmp.interruption import EXIT_CODE

if TYPE_CHECKING:
    from hetmp.config import TrainConfig

CONFIG_FILE = "config_file"
PRINT_CONFIG = "print_config"


def told_config(values: Mapping[str, Any], **job: Any) -> "tuple[TrainConfig, str]":
    """What the command's parameters come to, with the file that they name; flags win.

    Args:
        values: the parameters by name, as click parsed them.
        job: more flags, which a job gives; *values* win over them.

    Returns:
        The configuration, and what is to be known of the file in words.

    Raises:
        HetmpError: a file that cannot be read, a wrong value, or no model or data.
    """
    from hetmp.config import TrainConfig, train_config
    from hetmp.config_file import ConfigFile, differing_versions, flags_over, read_config

    given = {name: value for name, value in values.items() if value not in (None, ())}
    flags = job | {name: given[name] for name in TrainConfig.model_fields if name in given}
    for name, value in flags.items():
        if isinstance(TrainConfig.model_fields[name].default, dict):
            flags[name] = dict(value)
    path = values.get(CONFIG_FILE)
    file = read_config(path) if path else ConfigFile({}, {})
    told = flags_over(file.fields, flags)
    for name, field in TrainConfig.model_fields.items():
        if field.is_required() and name not in told:
            raise HetmpError(
                f"{name}: give --{name} NAME, or a --config file that says it"
                + (f" ({path} does not)" if path else "")
            )
    return train_config(**told), differing_versions(path, file.versions)


def _train(**values: Any) -> None:
    if values[PRINT_CONFIG]:
        from hetmp.config_file import config_text

        click.echo(config_text(told_config(values)[0]), nl=False)
        return
    from hetmp.train import train
    from hetmp.units import count_ranks

    group = Group()
    with group.together():  # a file may lie on some nodes alone
        config, note = told_config(values)
    if note:
        group.say(note)
    with group.failing():
        result = train(config)
    if result.stopped:
        group.say(
            f"stopped after step {result.steps}, as asked by a signal; the run goes on from "
            f"{config.out} with --resume auto"
        )
        raise SystemExit(EXIT_CODE)
    group.say(
        f"{100 * result.accuracy:.2f} % test accuracy after {result.steps} steps on "
        + (f"{result.ranks} of " if result.ranks < group.size else "")
        + count_ranks(group.size)
    )
    if config.out:
        group.say(f"wrote config.toml, metrics.jsonl, plan.json and model.h5 to {config.out}")


def train_command() -> click.Command:
    """``hetmp train``, with a flag per field of the configuration."""
    from hetmp.config import TrainConfig

    options: list[click.Parameter] = [
        click.Option(
            ["--config", CONFIG_FILE],
            metavar="FILE",
            help="The run in a file (TOML), such as the config.toml of an older one; flags win.",
        ),
        click.Option(
            ["--print-config", PRINT_CONFIG],
            is_flag=True,
            help="Print such a file of this run, complete and with comments, and train nothing.",
        ),
        *(field_option(name) for name in TrainConfig.model_fields),
    ]
    text = """Train a network, every rank with a slice of each layer's filters.

    \b
    Examples:
      hetmp train --model digits --data digits
      mpirun -n 3 hetmp train --model digits --data digits --weights 70,25,5
      mpirun -n 3 hetmp train --model digits --data digits --weights auto
      mpirun -n 2 hetmp train --model paper-cifar --data synthetic --steps 20
      hetmp train --model digits --data digits --print-config > run.toml
      mpirun -n 3 hetmp train --config run.toml --lr 0.1
    """
    return click.Command("train", params=options, callback=_train, help=text)


def field_option(name: str, wanted: bool = True) -> click.Option:
    """The flag of a field of the configuration, which is None where it is not given.

    Args:
        wanted: whether the field's default is what holds then; it is told in the help.
    """
    from hetmp.config import CHOICES, TrainConfig

    field = TrainConfig.model_fields[name]
    flag = "--" + name.replace("_", "-")
    kind = _plain(field.annotation)
    text = (field.description or "").replace("`", "'")
    if kind is bool:
        # A file's `true` can be taken back; of what is named no_... alone it cannot.
        both = flag if name.startswith("no_") else f"{flag}/--no-{flag[2:]}"
        return click.Option([both], is_flag=True, default=None, help=text)
    if kind is dict:
        return click.Option(
            [flag.removesuffix("s"), name],
            type=KeyValue(),
            multiple=True,
            help=f"{text.rstrip('.')}; once for each.",
        )
    if wanted and field.default is not None and not field.is_required():
        text = f"{text.rstrip('.')} (default: {field.default})."
    if name == "weights":
        return click.Option([flag], type=Weights(), metavar="NUMBERS|FILE|equal|auto", help=text)
    types: dict[Any, Any] = {
        int: click.INT,
        float: click.FLOAT,
        (tuple, float): Numbers(float, "numbers"),
        (tuple, int): Numbers(int, "integers"),
        (tuple, str): Numbers(str, "names"),
    }
    choices = "|".join(CHOICES.get(name, ()))
    if len(f"  {flag} {choices}") > 80:  # the help has them in words
        choices = "NAME"
    return click.Option(
        [flag], type=types.get(kind, click.STRING), metavar=choices or None, help=text
    )


def _plain(annotation: Any) -> Any:
    """The type under ``Annotated`` and ``| None``; (tuple, item) for tuples, dict for tables."""
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is tuple:
        return (tuple, _plain(get_args(annotation)[0]))
    if get_origin(annotation) is dict:
        return dict
    if hasattr(annotation, "__metadata__"):
        return _plain(annotation.__origin__)
    return annotation
