"""Which checkpoint of a folder is the newest that can be used."""

import json
from pathlib import Path

from hetmp.checkpoint.folder import Folder
from hetmp.checkpoint.seen import verify
from hetmp.comm import Group
from hetmp.errors import HetmpError


def newest_sound(group: Group, path: Path, *, named: bool) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose numbers have their digests. Collective.

    Args:
        path: a run's folder or one of checkpoints, as rank 0 sees it.
        named: whether *path* may also be a file, which then is the one that is looked at.

    Returns:
        The file, None where there is none; and what is wrong with those that are newer.

    Raises:
        HetmpError: on every rank: *path* is a file, or nothing, and cannot be used.
    """
    damaged: list[str] = []
    for file in _candidates(group, path, named=named):
        try:
            verify(group, file)
        except HetmpError as error:
            if file == path:
                raise
            damaged.append(str(error))
            continue
        return file, damaged
    return None, damaged


def _candidates(group: Group, path: Path, *, named: bool) -> list[Path]:
    """The files to try, the best first; as rank 0 sees them. Collective."""
    found: list[Path] = []
    with group.together():
        if group.is_root:
            inside = path / "checkpoints"
            folder = Folder(inside if inside.is_dir() else path)
            found = [file for _, file in folder.found()]
            if named and not path.is_dir():
                found = [path]
    told = group.broadcast_text(json.dumps([str(file) for file in found]))
    return [Path(name) for name in json.loads(told)]
