"""Slurm's commands in a few lines of shell, for what a real one cannot be made to do quickly."""

import os
from pathlib import Path

import pytest


class FakeSlurm:
    """Commands that win over those of the machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        monkeypatch.setenv("PATH", self.path)

    def command(self, name: str, text: str) -> Path:
        """Make the command *name* of the lines of *text*."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def offers(self, *types: str) -> None:
        """Make an srun that offers these types of MPI, as Slurm 23 lists them."""
        lines = "".join(f"\\n\\t{name}" for name in types)
        self.command("srun", f"printf 'MPI plugin types are...{lines}\\n' >&2")
