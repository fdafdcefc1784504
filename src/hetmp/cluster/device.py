"""The device and the number of threads that this rank computes with."""

import os

import torch

from hetmp.cluster import Group, local_sharing
from hetmp.cluster.slurm import cpus_per_task, gpus_per_task
from hetmp.core.errors import HetmpError


def choose_device(group: Group, wanted: str) -> torch.device:
    """Choose one GPU per rank of a host; with ``auto``, ranks without one get the CPU.

    Collective. Ranks that see the same GPUs share them out in rank order; a launcher that
    shows each rank a GPU of its own is followed.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        HetmpError: on every rank, if ``cuda`` is wanted and a rank has no GPU, or if Slurm
            promised a rank other GPUs than it is shown.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    with group.together():
        _check_promised_gpus()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number, sharing = local_sharing(group, ",".join(map(gpu_identity, range(count))))
    with group.together():
        if number < count:
            return _used(torch.device("cuda", number))
        if wanted == "cuda":
            raise HetmpError(
                f"this rank has no GPU: {count} for {sharing} ranks on its host. Start fewer "
                "ranks there, or use --device auto to let ranks without one compute on the CPU"
            )
    return torch.device("cpu")


def gpu_identity(number: int) -> str:
    """Return a text that distinguishes a GPU this rank sees from the others of its host.

    Its number does not: where Slurm shows each task one GPU, all of them call it 0.
    """
    uuid = getattr(torch.cuda.get_device_properties(number), "uuid", None)
    return str(uuid or f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}:{number}")


def shown_gpus() -> int | None:
    """Count the GPUs that ``CUDA_VISIBLE_DEVICES`` shows this rank; None where it is not set."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if shown is None else len([name for name in shown.split(",") if name.strip()])


def _check_promised_gpus() -> None:
    promised, shown = gpus_per_task(), shown_gpus()
    if promised is not None and shown is not None and shown != promised:
        raise HetmpError(
            f"Slurm promised this task {promised} GPU{'s' * (promised != 1)}, and "
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} shows it {shown}: leave "
            "that variable to srun (is it set in jobs/env.sh or a module?), or give --device cpu"
        )


def _used(device: torch.device) -> torch.device:
    torch.cuda.set_device(device)
    return device


def unseen_gpus() -> int:
    """Count the GPUs given to this rank that torch does not see."""
    return 0 if torch.cuda.is_available() else shown_gpus() or 0


def usable_cores() -> list[int]:
    """Return the cores that this process may use, perhaps with others."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share_cores(group: Group) -> int:
    """Share the cores among the ranks of a host that may use the same ones. Collective.

    OMP_NUM_THREADS wins; Slurm's --cpus-per-task is obeyed. Returns the number of threads that
    torch computes with.
    """
    cores = usable_cores()
    count = len(cores)
    _, sharing = local_sharing(group, str(cores))
    if "OMP_NUM_THREADS" not in os.environ:
        # Without task affinity, Slurm promises fewer cores than the process may use.
        promised = min(count, cpus_per_task() or count)
        torch.set_num_threads(max(1, min(promised, count // sharing)))
    return torch.get_num_threads()
