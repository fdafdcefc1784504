"""Which rank runs where: host, device, cores and memory."""

import platform
from collections.abc import Sequence
from itertools import groupby

import torch
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from hetmp.cluster import Group
from hetmp.cluster.device import unseen_gpus, usable_cores
from hetmp.cluster.machine import device_name, free_memory
from hetmp.cluster.slurm import node_kind
from hetmp.core.text import bytes_text


class RankPlace(BaseModel):
    """Where one rank runs."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    host: str
    kind: str
    """Of the node: its features or partition in Slurm, else the host's name."""
    device: str
    """The GPU's or the processor's name."""
    cores: int
    """That the rank may use, perhaps with others."""
    threads: int
    """That the rank computes with on a processor."""
    memory: int
    """Bytes that were free on the device at the start."""
    unused_gpus: int = 0
    """GPUs that the rank was given and that torch does not see."""


def gather_places(group: Group, device: torch.device, threads: int) -> tuple[RankPlace, ...]:
    """Gather every rank's place, in rank order. Collective.

    Args:
        group: the ranks of the job.
        device, threads: of this rank.
    """
    own = RankPlace(
        host=platform.node(),
        kind=node_kind(),
        device=device_name(device),
        cores=len(usable_cores()),
        threads=threads,
        memory=free_memory(device),
        unused_gpus=unseen_gpus(),
    )
    return tuple(
        RankPlace.model_validate_json(t) for t in group.gather_texts(own.model_dump_json())
    )


def placement_table(places: Sequence[RankPlace]) -> Table:
    """Return the places as a table; neighbours that are alike share a row."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("rank", "host", "device", "cores", "threads", "free memory"):
        table.add_column(heading, no_wrap=True)
    for _, alike in groupby(enumerate(places), key=lambda item: _looks(item[1])):
        rows = list(alike)
        (first, place), (last, _) = rows[0], rows[-1]
        table.add_row(
            f"{first}" if first == last else f"{first}-{last}",
            place.host,
            place.device,
            str(place.cores),
            str(place.threads),
            bytes_text(place.memory) if place.memory else "?",
        )
    return table


def show_placement(places: Sequence[RankPlace]) -> None:
    """Print which rank runs where, and a note about GPUs that are given and not used."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(placement_table(places))
    blind = [str(rank) for rank, place in enumerate(places) if place.unused_gpus]
    if blind:
        who = "rank {} was given a GPU" if len(blind) == 1 else "ranks {} were given GPUs"
        print(
            f"note: {who.format(', '.join(blind))} that torch {torch.__version__} does not see: "
            "processors compute there; install a torch for such GPUs, or ask for none",
            flush=True,
        )


def _looks(place: RankPlace) -> tuple[str, ...]:
    return place.host, place.device, str(place.cores), str(place.threads)
