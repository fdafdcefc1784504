"""Descriptions of a run: its headline, its ``run`` record, and the files that repeat it."""

import platform
import time
from collections.abc import Sequence

from hetmp.cluster import Group, mpi_library
from hetmp.cluster.placement import RankPlace
from hetmp.core.text import count_ranks
from hetmp.data import Dataset
from hetmp.run.config import TrainConfig
from hetmp.run.config_file import write_run_config
from hetmp.run.versions import present_versions
from hetmp.slicing import SlicedModel
from hetmp.slicing.plan import Plan


def headline(config: TrainConfig, model: SlicedModel, dataset: Dataset, steps: int) -> str:
    """Return the lines that announce a run to the user: network, data, ranks and shares.

    *config* is the run's configuration, *model* its sliced network on *dataset*, and *steps* the
    number of its steps.
    """
    runtime = model.hetmp
    counts = runtime.plan.held
    shares = ", ".join(f"{100 * count / max(1, sum(counts)):.0f} %" for count in counts)
    slowed = ""
    if config.slowdown:
        factors = ", ".join(f"{factor:g}" for factor in config.slowdown)
        slowed = f"\nranks slowed on purpose by {factors}: times are not those of this machine"
    return (
        f"{config.model} on {config.data}: {len(dataset.train)} training and {len(dataset.test)} "
        f"test images, {steps} steps of {config.batch_size}\n"
        f"{count_ranks(runtime.group.size)} with {shares} of the {runtime.plan.shared}{slowed}"
    )


def run_record(
    config: TrainConfig, model: SlicedModel, plan: Plan, places: Sequence[RankPlace], threads: int
) -> dict[str, object]:
    """Return the ``run`` record of the metrics: settings, ranks, devices, versions and plan.

    Args:
        config: of the run.
        model: the sliced network.
        plan: for all ranks of the job, as *places* are.
        threads: of this rank.
    """
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": config.model_dump(mode="json"),
        "ranks": model.hetmp.group.size,
        "threads": threads,
        "host": platform.node(),
        "placement": [place.model_dump() for place in places],
        "mpi": mpi_library(),
        "versions": present_versions(),
        "plan": plan.model_dump(mode="json"),
    }


def keep_settings(config: TrainConfig, plan: Plan, group: Group) -> None:
    """Write ``plan.json`` and ``config.toml``, which repeat the run. Collective.

    Args:
        config: the configuration as the user gave it, in the job's own order of the ranks.
        plan: of all ranks.
        group: the ranks that take part; rank 0 writes.

    Raises:
        HetmpError: on every rank, if they cannot be written.
    """
    if config.out is None:
        return
    with group.together():
        if group.is_root:
            plan.save(config.out / "plan.json")
            planned = config.plan is not None or (config.plans and plan.ranks > 1)
            write_run_config(config.out, config, planned, present_versions(), plan.ranks)
