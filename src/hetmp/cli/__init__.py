"""The commands: parsing and printing only."""

import sys

from hetmp.run.stop_signals import heed_early


def main() -> None:
    """Run the program ``hetmp``."""
    if "train" in sys.argv[1:2]:
        heed_early()  # the imports take many seconds on a slow node
    from hetmp.cli.program import main as run

    run()


__all__ = ["main"]
