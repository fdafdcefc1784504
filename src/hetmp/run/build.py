"""Build the data set and the network of a configuration, or the network's outline."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hetmp import data, models
from hetmp.cluster import Group
from hetmp.cluster.turns import in_turns
from hetmp.data import Dataset
from hetmp.models.outline import (
    built_on_cpu,
    on_cpu_line,
    tensor_bytes,
    try_on_meta,
    without_parameters,
)
from hetmp.run.config import TrainConfig


def load_dataset(config: TrainConfig, group: Group) -> Dataset:
    """Load the data set that *config* names. Collective.

    Raises:
        HetmpError: on every rank: an unknown name, wrong settings, or missing or damaged files.
    """
    return data.load(config.data, group, seed=config.seed, **config.data_settings())


def outline(config: TrainConfig, dataset: Dataset, group: Group) -> tuple[nn.Module, Tensor]:
    """Return the network of *config* and a batch of *dataset*, without values. Collective."""
    kind = getattr(torch, config.dtype)
    module = without_values(
        config.model, dataset.input_shape, dataset.classes, group, seed=config.seed
    )
    shape = (config.batch_size, *dataset.input_shape)
    return module.to(kind), torch.empty(shape, dtype=kind, device="meta")


def without_values(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    group: Group,
    *,
    seed: int = 0,
    say: bool = True,
) -> nn.Module:
    """Build the network *name* without values in its parameters. Collective.

    Where it cannot be built on the meta device, the ranks build it on the CPU from *seed*, and
    rank 0 says so if *say*.

    Raises:
        HetmpError: on every rank, as ``models.build``, or a user's function fails.
    """
    with group.together():
        module, why = try_on_meta(name, input_shape, classes)
    failed = group.allgather(np.array([module is None], dtype=np.int8)).ravel()
    if module is not None and not failed.any():
        return module
    why = group.broadcast_text(why, int(failed.argmax()))
    module, one_by_one = _in_turns(
        lambda: built_on_cpu(name, input_shape, classes, seed), group, keep=False
    )
    if say:
        by = ", by one rank of a host after another to save memory" if one_by_one else ""
        group.say(on_cpu_line(name, why) + by)
    return module


def with_values(name: str, input_shape: Sequence[int], classes: int, group: Group) -> nn.Module:
    """Build the network *name* with values on rank 0 alone, to save memory. Collective.

    A network of a user's own may hold tensors that are neither parameters nor buffers: every rank
    builds it, and all but rank 0 drop the parameters' values again.

    Raises:
        HetmpError: on every rank, as ``models.build``.
    """
    if name in models.names():
        with group.together(), torch.device("cpu" if group.is_root else "meta"):
            return models.build(name, input_shape, classes)
    module, one_by_one = _in_turns(
        lambda: models.build(name, input_shape, classes), group, keep=group.is_root
    )
    if one_by_one:
        group.say(f"{name} is built by one rank of a host after another to save memory")
    return module


def _in_turns(
    build: Callable[[], nn.Module], group: Group, *, keep: bool
) -> tuple[nn.Module, bool]:
    """Build a network on every rank, as many at once as a host has memory for. Collective.

    Returns:
        The network, with values in its parameters if *keep*; and whether ranks took turns.
    """
    built: list[nn.Module] = []

    def work() -> int:
        module = build()
        built.append(module if keep else without_parameters(module))
        return tensor_bytes(module)

    one_by_one = in_turns(group, work)
    return built[0], one_by_one
