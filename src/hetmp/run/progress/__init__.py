"""The progress display of a run: a frame in a terminal, else lines with the time."""

from hetmp.run.progress.progress import Progress, silent
from hetmp.run.progress.status import RunDescription

__all__ = ["Progress", "RunDescription", "silent"]
