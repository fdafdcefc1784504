"""The versions that a run's numbers depend on."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hetmp.core.version import __version__


def present_versions() -> dict[str, str]:
    """Return the versions of hetmp, Python and the packages that affect a run's numbers."""
    versions = {"hetmp": __version__, "python": platform.python_version()}
    for name in ("torch", "mpi4py", "numpy", "h5py"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # built by the site, and not told to Python
            continue
    return versions


def differing_versions(path: str | Path | None, written: Mapping[str, str]) -> str:
    """Return a note on packages whose version differs from that in a file; empty if none does."""
    present = present_versions() if written else {}
    unlike = [
        f"{name} {number} (here {present.get(name, 'unknown')})"
        for name, number in written.items()
        if number != present.get(name)
    ]
    if not unlike:
        return ""
    return f"{path} was written with {', '.join(unlike)}: the loss may differ in its last digits"
