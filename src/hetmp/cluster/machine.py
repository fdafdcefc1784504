"""This rank's machine: the device's name, its free memory, and the quota of CPU time."""

import platform
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int:
    """Return the free bytes on the device; 0 where they are unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    try:
        lines = MEMORY_INFO.read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError, IndexError):
        pass
    for folder in _own_folders():
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            limits.append(max(0, limit - used))
    return min(limits, default=0)


def quota_period() -> float:
    """Return the period of the CPU quota in seconds; 0 without a quota.

    A container or job with a fifth of a CPU computes for a fifth of each period and then stands
    still: what is measured over less than many periods is luck.
    """
    for folder in _own_folders():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            return int(period) / 1e6
    for folder in _own_folders("cpu"):
        if (_number(folder / "cpu.cfs_quota_us") or -1) > 0:
            return (_number(folder / "cpu.cfs_period_us") or 0) / 1e6
    return 0.0


def _own_folders(controller: str = "") -> list[Path]:
    """List this process's control group and its parents: version 2, or 1's *controller*."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if path and controller in names.split(","):
            top = CGROUPS / controller
            own = top / path.strip("/")
            return [own, *(folder for folder in own.parents if folder.is_relative_to(top))]
    return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # absent, or "max"
