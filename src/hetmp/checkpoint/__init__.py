"""Checkpoints: HDF5 files that know nothing of ranks. docs/checkpoint-format.md specifies them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetmp.checkpoint.cadence import Cadence
    from hetmp.checkpoint.folder import Folder
    from hetmp.checkpoint.run import Keeping, Position, RunCheckpoints
    from hetmp.checkpoint.state import load, save

_HOMES = {
    "Cadence": "cadence",
    "Folder": "folder",
    "Keeping": "run",
    "Position": "run",
    "RunCheckpoints": "run",
    "load": "state",
    "save": "state",
}

__all__ = ["Cadence", "Folder", "Keeping", "Position", "RunCheckpoints", "load", "save"]


def __getattr__(name: str) -> Any:
    # What inspects a file needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"hetmp.checkpoint.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hetmp.checkpoint' has no attribute {name!r}")
