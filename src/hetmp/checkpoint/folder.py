"""A folder of checkpoints by step: which are kept, and which is the newest sound one."""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hetmp.checkpoint.reader import verify
from hetmp.cluster import Group
from hetmp.core.errors import HetmpError

LATEST = "latest.h5"

_NAME = re.compile(r"step-(\d{8,})\.h5")


@dataclass(frozen=True)
class Folder:
    """A run's folder of checkpoints.

    Attributes:
        path: of the folder.
        keep: how many of the newest are kept.
        keep_every: those whose step is a multiple of this are kept for good; none if None.
    """

    path: Path
    keep: int = 2
    keep_every: int | None = None

    def at(self, step: int) -> Path:
        """Return the file of a step."""
        return self.path / f"step-{step:08d}.h5"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """List (step, file) of every checkpoint, the newest first."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        matches = [match for match in map(_NAME.fullmatch, names) if match]
        return sorted(((int(match[1]), self.path / match[0]) for match in matches), reverse=True)

    def written(self, step: int) -> None:
        """Point ``latest`` at the complete checkpoint of *step*, and delete old ones.

        Raises:
            OSError: the link could not be made.
        """
        beside = self.path / f".{LATEST}.part"
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        beside.symlink_to(self.at(step).name)
        beside.replace(self.path / LATEST)
        # Later ones belong to an abandoned continuation: the run was resumed before them.
        lived = [(number, file) for number, file in self.checkpoints() if number <= step]
        for number, file in self.checkpoints():
            for_good = self.keep_every is not None and number % self.keep_every == 0
            recent = (number, file) in lived[: self.keep]
            if not recent and not (for_good and number <= step):
                file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove the half-written files of a run that was killed while saving."""
        if self.path.is_dir():
            for left in self.path.glob(".*.part"):
                left.unlink(missing_ok=True)


def newest_sound(group: Group, path: Path, *, named: bool) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint whose numbers match their digests. Collective.

    Args:
        group: the ranks of the job; rank 0 looks for the others.
        path: a run's folder or one of checkpoints, as rank 0 sees it.
        named: whether *path* may also be a file, which then is the only candidate.

    Returns:
        The file, None without a sound one; and what is wrong with each newer one.

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
    """List the files to try, the best first; as rank 0 sees them. Collective."""
    files: list[Path] = []
    with group.together():
        if group.is_root:
            inside = path / "checkpoints"
            folder = Folder(inside if inside.is_dir() else path)
            files = [file for _, file in folder.checkpoints()]
            if named and not path.is_dir():
                files = [path]
    names = group.broadcast_text(json.dumps([str(file) for file in files]))
    return [Path(name) for name in json.loads(names)]
