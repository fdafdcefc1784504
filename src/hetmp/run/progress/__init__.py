"""What a person sees while a run goes on: a frame in a terminal, lines with the time elsewhere."""

from hetmp.run.progress.progress import Progress, silent
from hetmp.run.progress.status import About

__all__ = ["About", "Progress", "silent"]
