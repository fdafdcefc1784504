"""``hetmp train``: a flag per field of the configuration."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

import click

from hetmp.cli.options import Numbers, Weights
from hetmp.comm import AgreedError, Group
from hetmp.interruption import EXIT_CODE


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
        group.say(f"wrote metrics.jsonl, plan.json and model.h5 to {config.out}")


def train_command() -> click.Command:
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
      mpirun -n 3 hetmp train --model digits --data digits --weights auto
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
    if name == "weights":
        return click.Option([flag], type=Weights(), metavar="NUMBERS|FILE|equal|auto", help=text)
    types: dict[Any, Any] = {
        int: click.INT,
        float: click.FLOAT,
        (tuple, float): Numbers(float, "numbers"),
        (tuple, int): Numbers(int, "integers"),
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
