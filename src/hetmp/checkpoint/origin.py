"""The run that a checkpoint comes from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetmp.checkpoint.catalog import under
from hetmp.checkpoint.format import AVERAGE, MODEL, TRAINING, unescaped
from hetmp.checkpoint.reader import Seen, read_values, seen
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError


@dataclass(frozen=True)
class Origin:
    """The run that a checkpoint comes from, as far as the file says.

    Attributes:
        config: the run's settings; empty where the file has none.
        step: steps taken; None where the file does not say.
        dtype: of the network's parameters, by torch's name.
        averaged: the parameters that also have a moving average in the file.
    """

    config: Mapping[str, Any]
    step: int | None
    dtype: str
    averaged: tuple[str, ...] = ()


def read_origin(group: Group, file: Path) -> Origin:
    """Read a checkpoint's origin on every rank; digests are not compared. Collective.

    Raises:
        HetmpError: on every rank: a file that is not a checkpoint, or has no network.
    """
    with seen(group, file) as checkpoint:
        training = read_values(group, checkpoint, TRAINING)
        with group.together():
            step = training.get("step")
            return Origin(
                _config(training, file),
                step if isinstance(step, int) else None,
                _dtype(checkpoint, file),
                tuple(map(unescaped, under(checkpoint.stored, AVERAGE))),
            )


def _config(training: Mapping[str, Any], file: Path) -> dict[str, Any]:
    try:
        config = json.loads(training.get("config", "{}"))
    except (TypeError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise HetmpError(
            f"{file}: /{TRAINING}/config is not a JSON object: this is not a sound file"
        )
    return config


def _dtype(checkpoint: Seen, file: Path) -> str:
    """Return the dtype of the first floating parameter: a network computes in one."""
    dtypes = (stored.dtype for stored in under(checkpoint.stored, MODEL).values())
    first = next((dtype for dtype in dtypes if "float" in dtype), None)
    if first is None:
        raise HetmpError(f"{file} contains no network: /{MODEL} has no parameter")
    return first
