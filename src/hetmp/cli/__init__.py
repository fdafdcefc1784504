"""The commands: parsing and printing only."""

from hetmp.cli.program import main

__all__ = ["main"]
