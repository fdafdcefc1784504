"""What the commands take that use a trained network."""

from typing import Any

from hetmp.cli.fields import field_options
from hetmp.config import OF_DATA, TrainConfig

FIELDS = (
    "model",
    "data",
    *(name for name in TrainConfig.model_fields if name in OF_DATA),
    "readers",
    "weights",
    "plan",
    "batch_size",
    "device",
    "autocast",
)
"""The settings of a run that apply where a network is used."""


def used_options(command: Any) -> Any:
    """Give a command the flags of ``FIELDS``, each None where it is not given."""
    return field_options(*FIELDS, wanted=False)(command)
