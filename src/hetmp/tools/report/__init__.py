"""Report runs as a page and pictures. No torch, no MPI.

``docs/report.md`` says what each picture tells and how the diagnosis decides.
"""

from collections.abc import Sequence
from pathlib import Path

from hetmp.tools.report.content import Content, content
from hetmp.tools.report.reading import Run, read_runs


def write_report(runs: Sequence[Run], folder: Path) -> tuple[Content, Path]:
    """Write the page and the PNGs of *runs* to *folder*, replacing an older report.

    Returns:
        The content of the report, and the page's path.

    Raises:
        HetmpError: a file cannot be written.
    """
    # Drawing takes a second to import.
    from hetmp.tools.report.page import page
    from hetmp.tools.report.writing import write

    shown = content(runs)
    drawn = {picture.name: picture.drawn() for picture in shown.pictures}
    text = page(shown, {name: svg for name, (svg, _) in drawn.items()})
    return shown, write(folder, text, {name: png for name, (_, png) in drawn.items()})


__all__ = ["Content", "Run", "read_runs", "write_report"]
