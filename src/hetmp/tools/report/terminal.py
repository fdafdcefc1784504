"""The gist of a report, for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hetmp.tools.report.content import Content, runs_table
from hetmp.tools.report.reading import Run

COLUMNS = (
    "run",
    "ranks",
    "images/s",
    "step",
    "compute",
    "exchange",
    "waiting",
    "reading",
    "test accuracy",
)
"""Columns of the table of runs that fit in a terminal of 80 columns."""


def gist(content: Content, runs: Sequence[Run]) -> RenderableType:
    """Make a table of the runs, with the diagnosis of each and its prediction."""
    parts: list[RenderableType] = [_table(runs)]
    for run in content.runs:
        parts.append(Text())
        if len(content.runs) > 1:
            parts.append(Text(run.label, style="bold"))
        parts += [_marked(finding.text) for finding in run.diagnosis.findings]
        parts += [_marked(sentence) for sentence in run.prediction]
        parts += [_marked(f"note: {note}", "dim") for note in run.diagnosis.notes]
    return Group(*parts)


def _table(runs: Sequence[Run]) -> Table:
    whole = runs_table(runs)
    places = [whole.headings.index(name) for name in COLUMNS]
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for place in places:
        heading = whole.headings[place].replace("test accuracy", "test")
        words = place < whole.words
        shown.add_column(heading, justify="left" if words else "right", overflow="fold")
    for row in whole.rows:
        shown.add_row(*(Text(row[place]) for place in places))
    return shown


def _marked(text: str, style: str = "") -> Text:
    """Make text with bold parts for those in backticks."""
    marked = Text(style=style)
    for number, part in enumerate(text.split("`")):
        marked.append(part, style="bold" if number % 2 else "")
    return marked
