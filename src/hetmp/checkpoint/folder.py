"""A folder of checkpoints by step: the newest are kept, and ``latest`` always leads to one."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

LATEST = "latest.h5"

_NAME = re.compile(r"step-(\d{8,})\.h5")


@dataclass(frozen=True)
class Folder:
    """Where a run's checkpoints lie.

    Attributes:
        path: of the folder.
        keep: how many of the newest are kept.
        keep_every: those whose step is a multiple of this are kept for good; none if None.
    """

    path: Path
    keep: int = 2
    keep_every: int | None = None

    def at(self, step: int) -> Path:
        """The file of a step."""
        return self.path / f"step-{step:08d}.h5"

    def found(self) -> list[tuple[int, Path]]:
        """(step, file) of every checkpoint there is, the newest first."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        matches = [match for match in map(_NAME.fullmatch, names) if match]
        return sorted(((int(match[1]), self.path / match[0]) for match in matches), reverse=True)

    def written(self, step: int) -> None:
        """The checkpoint of *step* is complete: ``latest`` leads to it, old ones go.

        Raises:
            OSError: the link could not be made.
        """
        beside = self.path / f".{LATEST}.part"
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        beside.symlink_to(self.at(step).name)
        beside.replace(self.path / LATEST)
        # Later ones than this are of a life that was abandoned: the run was resumed before them.
        lived = [(number, file) for number, file in self.found() if number <= step]
        for number, file in self.found():
            for_good = self.keep_every is not None and number % self.keep_every == 0
            recent = (number, file) in lived[: self.keep]
            if not recent and not (for_good and number <= step):
                file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a run that was killed while saving left half-written."""
        if self.path.is_dir():
            for left in self.path.glob(".*.part"):
                left.unlink(missing_ok=True)
