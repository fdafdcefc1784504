"""What the commands take that use a trained network."""

from collections.abc import Callable
from typing import Any

from hetmp.cli.train import field_option
from hetmp.config import OF_DATA

FIELDS = (
    "weights",
    "plan",
    "model",
    "data",
    *OF_DATA,
    "batch_size",
    "readers",
    "autocast",
    "device",
)
"""The settings of a run that apply where a network is used."""


def used_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of ``FIELDS``, each None where it is not given."""
    command.__click_params__ = [  # type: ignore[attr-defined]
        *(field_option(name, wanted=False) for name in reversed(FIELDS)),
        *getattr(command, "__click_params__", []),
    ]
    return command
