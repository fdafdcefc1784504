"""Check that ranks can work together: one line per check, with a remedy if it fails."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from hetmp.cluster import Group, check_world, launched, mpi_library, mpi_vendor, thread_level
from hetmp.cluster.slurm import available, fitting, inside_job, offered_mpi_types
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import nearest
from hetmp.core.version import __version__

VARIABLES = (
    "HETMP_GRACE_SECONDS",
    "HETMP_HANG_SECONDS",
    "HETMP_NODE_KIND",
    "HETMP_RUN",
    "HETMP_SRUN_MPI",
)
"""Environment variables that hetmp and its jobs read: see docs/commands.md."""

OF_TESTS = ("HETMP_TEST_", "HETMP_CLUSTER_", "HETMP_PARALLEL_HDF5")
"""Prefixes of environment variables that tests read."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: its subject.
        result: what was found.
        remedy: what to do if it failed; empty if it passed.
    """

    what: str
    result: str
    remedy: str = ""


def examine() -> list[Check]:
    """Run all checks that are possible here. Collective over all ranks that were started."""
    findings = [Check("hetmp", f"{__version__}, Python {platform.python_version()}")]
    findings += _variables()
    findings.append(_looked("MPI", _library))
    if findings[-1].remedy:
        return [*findings, _looked("HDF5", _hdf5)]
    findings.append(_looked("world", _world))
    # A world that fell apart has nobody to ask about other ranks.
    group = None if findings[-1].remedy else Group()
    findings += [_thread_level(), _torch(), *_devices(group)]
    findings.append(_looked("HDF5", _hdf5))
    findings.append(Check("native code", "none in this version: numpy, torch and MPI do the work"))
    findings.append(_looked("Slurm", _slurm))
    return findings


def _variables() -> list[Check]:
    """Check the environment variables whose names begin with ``HETMP_``."""
    names = [name for name in os.environ if name.startswith("HETMP_")]
    variables = sorted(name for name in names if not name.startswith(OF_TESTS))
    shown = ", ".join(f"{name}={os.environ[name]}" for name in variables)
    for name in variables:
        if name not in VARIABLES:
            meant = nearest(name, VARIABLES)
            hint = f": did you mean {meant}?" if meant else ""
            return [Check("environment", shown, f"nothing reads {name}{hint}")]
    return [Check("environment", shown)] if variables else []


def _looked(what: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except HetmpError as error:
        return Check(what, "not usable", str(error))


def _library() -> Check:
    mpi_vendor()  # or raises what to do
    return Check("MPI", f"{mpi_library()}, mpi4py {version('mpi4py')}")


def _world() -> Check:
    group = Group()
    check_world(group)
    if group.size > 1:
        return Check("world", f"one of {group.size} ranks")
    if launched() is None:
        return Check("world", "1 rank; start it with mpirun or srun to look at more")
    return Check("world", "1 rank, as was started")


def _thread_level() -> Check:
    level = thread_level()
    if level == "multiple":
        return Check("threads of MPI", level)
    return Check(
        "threads of MPI",
        level,
        "--save-behind needs an MPI that is built for several threads (MPI_THREAD_MULTIPLE)",
    )


def _torch() -> Check:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "processors only"
    return Check("torch", f"{torch.__version__}, for {built}")


def _devices(group: Group | None) -> list[Check]:
    """Check the devices: a line per rank, or one for neighbours that are alike. Collective."""
    from hetmp.cluster.device import choose_device, share_cores, unseen_gpus
    from hetmp.cluster.machine import device_name

    if group is None:
        return []
    try:
        threads, device = share_cores(group), choose_device(group, "auto")
    except HetmpError as error:
        return [Check("devices", "not usable", str(error))]
    own = device_name(device)
    if device.type == "cpu":
        own += f", {threads} thread{'s' * (threads != 1)}"
    own += f" on {platform.node()}"
    blind = unseen_gpus() > 0
    texts = group.gather_texts(own + ("|blind" if blind else ""))
    return _by_rank(texts)


def _by_rank(texts: Sequence[str]) -> list[Check]:
    findings: list[Check] = []
    first = 0
    for rank, text in enumerate(texts):
        if rank + 1 < len(texts) and texts[rank + 1] == text:
            continue
        name, _, blind = text.partition("|")
        who = f"rank {first}" if first == rank else f"ranks {first}-{rank}"
        remedy = (
            "CUDA_VISIBLE_DEVICES shows a GPU that torch does not see: install a torch for CUDA "
            "(make setup TORCH=...), or ask Slurm for no GPU"
        )
        findings.append(Check(who, name, remedy if blind else ""))
        first = rank + 1
    return findings


def _hdf5() -> Check:
    import h5py

    parallel = h5py.get_config().mpi
    return Check(
        "HDF5",
        f"{h5py.version.hdf5_version}, h5py {version('h5py')} "
        + ("with MPI: ranks write in parallel" if parallel else "without MPI: rank 0 writes"),
    )


def _slurm() -> Check:
    if not available():
        where = "inside a job, without its commands" if inside_job() else "not on this machine"
        return Check("Slurm", where)
    offered = offered_mpi_types()
    kind = fitting(mpi_vendor(), offered)
    return Check("Slurm", f"use srun --mpi={kind} (it offers {', '.join(offered)})")
