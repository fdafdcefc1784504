"""Draws docs/terminal.svg: what is seen in a terminal after some steps of a real run.

scripts/mpirun.sh -n 3 .venv/bin/python -m mpi4py scripts/terminal_svg.py docs/terminal.svg
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from hetmp.cluster import Group
from hetmp.run.config import train_config
from hetmp.run.progress import progress
from hetmp.run.progress.frame import Frame
from hetmp.run.train import train

SHOWN = 318
WIDTH = 88


class Picture:
    """A view that keeps what is said, and draws once."""

    shows_ranks = True

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said += text.splitlines()

    def stands(self, standing):
        if standing.step == SHOWN:
            console = Console(
                record=True, width=WIDTH, height=30, file=io.StringIO(), force_terminal=True,
                highlight=False, color_system="standard",
            )  # fmt: skip
            for line in [*self.said[:3], *self.said[-4:]]:
                console.print(line, markup=False)
            console.print(Frame(standing), end="")
            svg = console.export_svg(theme=SVG_EXPORT_THEME, title="hetmp train")
            Path(sys.argv[1]).write_text(without_fonts(svg))
        return False

    def close(self):
        pass


def without_fonts(svg):
    """A picture by rich, without the fonts that it has fetched from the network."""
    bare = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return bare.replace("Fira Code, monospace", "DejaVu Sans Mono, Menlo, Consolas, monospace")


if Group().is_root:
    progress.view_of = lambda name, quiet: Picture()
train(
    train_config(
        model="digits",
        data="digits",
        weights=(70, 25, 5),
        slowdown=(1, 2, 4),
        steps=920,
        quiet=True,
    )
)
