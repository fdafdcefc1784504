"""``python -m hetmp.cli``."""

from hetmp.cli import main

main()
