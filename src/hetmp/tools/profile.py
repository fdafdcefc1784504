"""``hetmp profile``: measure a network's operations on every rank, and the links between them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hetmp.cluster.slurm import node_kind
from hetmp.core.errors import HetmpError
from hetmp.planner.profiling import Budget, Library, Profile, Task, keep_kinds, profile_model
from hetmp.run.build import without_values
from hetmp.run.rank_setup import order_ranks, set_up_rank
from hetmp.slicing import Tuning
from hetmp.slicing.graph import read_graph

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class ProfileConfig:
    """The settings of a measurement.

    Attributes:
        model, input_shape, classes: the network, and the images that it is built for.
        batch_size: images per step, of all ranks together.
        dtype: of the weights, by torch's name.
        device: ``auto``, ``cpu`` or ``cuda``.
        autocast: precision of convolutions: one name, or one per rank.
        seconds: time for measuring the devices.
        filters_only: whether every layer follows scheme ``filters``.
        profiles: the folder of profiles by kind of node; None stores nothing there.
        kind: kind of all these nodes; from Slurm or the host if None.
        slowdown: factor by which each rank is slowed on purpose.
    """

    model: str
    input_shape: tuple[int, ...]
    classes: int
    batch_size: int
    dtype: str = "float32"
    device: str = "auto"
    autocast: tuple[str, ...] | None = None
    seconds: float = 60.0
    filters_only: bool = False
    profiles: Path | None = None
    kind: str | None = None
    slowdown: tuple[float, ...] | None = None

    def check(self) -> None:
        """Refuse settings that cannot be measured.

        Raises:
            HetmpError: the first wrong value.
        """
        if self.kind is not None and self.profiles is None:
            raise HetmpError(
                "--kind names a kind of node in the folder --profiles: give both, or neither"
            )
        if self.batch_size < 1:
            raise HetmpError(f"batch_size must be 1 or more, got {self.batch_size}")


def profile_network(
    config: ProfileConfig, out: Path | None, comm: "MPI.Intracomm | None" = None
) -> tuple[Profile, list[Path]]:
    """Measure as *config* says on the ranks of *comm*. Collective.

    Args:
        out: the file to write; None for none.

    Returns:
        The profile, the same on every rank, and the files that were written, on rank 0.

    Raises:
        HetmpError: on every rank at once: bad input, or a file that cannot be written.
    """
    ranks = order_ranks(comm, config.slowdown)
    group = ranks.group
    with group.together():
        config.check()
    dtype = getattr(torch, config.dtype)
    module = without_values(config.model, config.input_shape, config.classes, group)
    module = module.to(dtype)
    shape = (config.batch_size, *config.input_shape)
    example = torch.empty(shape, dtype=dtype, device="meta")
    with group.together():
        library = _library(config, module, example)
    kind = config.kind or (node_kind() if library is not None else "")
    kinds = group.gather_texts(kind)
    with group.together():
        if group.is_root and library is not None:
            for name in set(kinds):
                library.check_writable(name)
    with group.failing():
        setup = set_up_rank(
            ranks,
            config.device,
            autocast=ranks.arrange(config.autocast),
            slowdown=ranks.arrange(config.slowdown),
        )
        with setup.casting():
            profile = profile_model(
                module,
                example,
                group,
                name=config.model,
                device=setup.device,
                budget=(
                    Budget(config.seconds, ()) if config.filters_only else Budget(config.seconds)
                ),
                slowdown=setup.slowdown,
                notify=group.say,
            )
    files = keep_kinds(library, group, kinds, profile) if library is not None else []
    with group.together():
        if group.is_root and out is not None:
            profile.save(out)
            files.append(out)
    return profile, files


def _library(config: ProfileConfig, module: nn.Module, example: Tensor) -> Library | None:
    if config.profiles is None:
        return None
    task = Task.of(config.model, read_graph(module, example), example, Tuning())
    return Library(config.profiles, task)
