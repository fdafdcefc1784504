"""Results as lines of JSON, one per bench, with the machine and versions."""

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from hetmp.cluster import mpi_library
from hetmp.core.errors import HetmpError
from hetmp.core.version import __version__
from hetmp.tools.bench.result import BenchResult


def check_appendable(path: Path) -> None:
    """Refuse a file that cannot be appended to, before anything is measured.

    Raises:
        HetmpError: the file and the reason.
    """
    if not path.parent.is_dir():
        raise HetmpError(f"{path.parent} is not a folder: make it before writing {path.name}")
    try:
        path.open("a").close()
    except OSError as error:
        raise HetmpError(
            f"cannot write to {path} ({error.strerror}): choose another file"
        ) from error


def append_result(path: Path, result: BenchResult, command: str) -> None:
    """Append *result*, measured by *command*, to the file at *path* as one line of JSON."""
    line = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "ranks": len(result.config.weights),
        **asdict(result),
        "threads": {"a rank": result.threads[0], "one process": result.threads[1]},
        "host": {"name": platform.node(), "cpu": _cpu(), "cores": os.cpu_count()},
        "versions": {
            "hetmp": __version__,
            "python": platform.python_version(),
            "mpi": mpi_library(),
            **{name: version(name) for name in ("torch", "mpi4py", "numpy")},
        },
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _cpu() -> str:
    """Return the processor's name from /proc/cpuinfo, else its architecture."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        facts = []
    names = (line.partition(":")[2].strip() for line in facts if line.startswith("model name"))
    return next(names, platform.machine())
