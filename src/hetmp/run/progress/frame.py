"""The frame that shows a run in a terminal, with a row for each rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from hetmp.core.text import count_ranks
from hetmp.run.metrics import KINDS
from hetmp.run.progress.bars import ASCII, BLOCKS, COLOURS, Glyphs, curve, done_bar, spent_bar
from hetmp.run.progress.lines import clock_text, rate_text
from hetmp.run.progress.status import Standing


@dataclass(frozen=True)
class RankRow:
    """A rank, or the mean of several.

    Attributes:
        name: the rank's number, or how many ranks the row stands for.
        share: share of the channels, from 0 to 1; the mean over several ranks.
        seconds: by kind, in the order of ``KINDS``.
    """

    name: str
    share: float
    seconds: tuple[float, ...]


def rows_for(
    shares: Sequence[float], spent: Mapping[str, Sequence[float]], room: int
) -> list[RankRow]:
    """Make a row per rank if *room* allows; else the slowest, the others' mean, the fastest.

    The slowest rank is the one that computes longest; it comes first where not all are shown.

    Args:
        shares: of the channels, by rank; only ratios matter.
        spent: seconds by kind and rank.
        room: the most rows.
    """
    ranks = range(len(shares))
    whole = max(1e-9, sum(shares))
    seconds = [tuple(spent[kind][rank] for kind in KINDS) for rank in ranks]
    rows = [RankRow(f"{rank}", shares[rank] / whole, seconds[rank]) for rank in ranks]
    if len(rows) <= room:
        return rows
    rows.sort(key=lambda row: -row.seconds[KINDS.index("compute")])
    if room < 3:
        return rows[: max(1, room)]
    slowest = room // 2
    fastest = room - 1 - slowest
    others = rows[slowest : len(rows) - fastest]
    mean = tuple(
        sum(values) / len(others) for values in zip(*(o.seconds for o in others), strict=True)
    )
    share = sum(other.share for other in others) / len(others)
    return [*rows[:slowest], RankRow(f"{len(others)} others", share, mean), *rows[-fastest:]]


WIDEST = 110
"""Most columns of the frame."""

NARROW = 60
"""Columns below which borders and less important figures are left out."""

LABEL = 12
"""Least columns of a line's label."""

LOW = 14
"""Lines of the terminal below which borders are left out and all lines are used."""

ABOVE = 6
"""Lines left free above the frame in a higher terminal."""


class Frame:
    """A renderable that draws the state of a run for the present size of the terminal.

    It ends in an empty line, where the cursor rests: other output, and the shell's after the run,
    begins below the frame.

    Attributes:
        widths: widths of the lines drawn last.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = ASCII if options.ascii_only else BLOCKS
        width, height = min(options.max_width, WIDEST), options.size.height
        bordered = width >= NARROW and height >= LOW
        inner = width - 4 if bordered else width - 1  # a full line would be wrapped by some
        used = height - 1 if height < LOW else max(LOW, height - ABOVE)
        lines = _lines(self.standing, max(1, inner), used - 2 * bordered, glyphs)
        text = Text("\n").join(lines)
        shown: Text | Panel = text
        if bordered:
            shown = Panel(
                text,
                title=Text(self.standing.run.title, "bold"),
                subtitle=Text(count_ranks(len(self.standing.run.shares))),
                title_align="left",
                subtitle_align="right",
                width=width,
                border_style="dim",
            )
        drawn = console.render_lines(shown, options.update(width=width), pad=False)
        drawn = drawn[: max(1, height - 1)]
        self.widths = [Segment.get_line_length(line) for line in drawn]
        for line in drawn:
            yield from line
            yield Segment.line()
        yield Segment.line()


def _lines(standing: Standing, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Return the frame's lines, only the most important ones if there is little room."""
    size = standing.run
    figures = f"{standing.step}/{size.steps}  {clock_text(standing.left)} left"
    of_epoch = f"{standing.batch}/{size.per_epoch}"
    names = ["run", f"epoch {standing.epoch + 1}/{size.epochs}", "loss", "speed"]
    run, epoch, loss, speed = (f"{name:<{max(LABEL, len(names[1]) + 2)}}" for name in names)
    head = [
        _bar_line(run, standing.step / size.steps, figures, width, glyphs),
        _bar_line(epoch, standing.batch / size.per_epoch, of_epoch, width, glyphs),
        _loss_line(loss, standing, width, glyphs),
        _speed_line(speed, standing, width),
    ]
    spent = standing.recent_by_rank()
    room = height - len(head)
    if not spent or room < 2:
        return head[: max(1, height)]
    blank = [Text()] if room >= 8 else []
    rows = rows_for(size.shares, spent, room - 1 - len(blank))
    return [*head, *blank, *_ranks(rows, spent, width, glyphs)]


def _bar_line(label: str, done: float, figures: str, width: int, glyphs: Glyphs) -> Text:
    room = width - len(label) - len(figures) - 2
    if room < 4:
        return _cut(Text(f"{label.rstrip()} {figures}"), width)
    return Text.assemble(label, done_bar(done, room, glyphs), f"  {figures}")


def _loss_line(label: str, standing: Standing, width: int, glyphs: Glyphs) -> Text:
    loss = f"{label}{standing.loss:.4f}"
    parts = [f"batch {100 * standing.accuracy:.2f} %"]
    if standing.test is not None:
        parts.append(f"test {100 * standing.test:.2f} %")
    while len("  ".join([loss, *parts])) > width and len(parts) > 1:
        parts.pop(0)
    accuracy = "  ".join(parts)
    drawn = curve(standing.losses.points, min(width - len(loss) - len(accuracy) - 4, 48), glyphs)
    between = Text.assemble("  ", (drawn, "cyan"), "  " if drawn else "")
    return _cut(Text.assemble(loss, between, accuracy), width)


def _speed_line(label: str, standing: Standing, width: int) -> Text:
    parts = [
        f"{label}{rate_text(standing.recent_images_per_second)}",
        f"{rate_text(standing.images_per_second)} on average",
        f"{_seconds_text(standing.recent_seconds)} a step",
        f"{clock_text(standing.elapsed)} so far",
    ]
    while len(parts) > 1 and len(", ".join(parts)) > width:
        parts.pop(1 if len(parts) == 4 else -1)
    return _cut(Text(", ".join(parts)), width)


def _ranks(
    rows: Sequence[RankRow], spent: dict[str, list[float]], width: int, glyphs: Glyphs
) -> list[Text]:
    """Draw a legend, and a bar for each row."""
    wide = width >= NARROW
    longest = max(map(sum, zip(*spent.values(), strict=True)))
    names = max(len("ranks"), *(len(row.name) for row in rows))
    shares = [f"{100 * row.share:.0f} %" for row in rows]
    # What stands left and right of the bars: "rank 0   71 %  " and "  compute 12 ms  waiting 3 %".
    right = [_figures(row, wide) for row in rows]
    room = width - names - 7 - 2 - max(map(len, right)) - 2
    legend = Text(f"{'rank':<{names}}")
    if room < 6:
        bare = zip(rows, right, strict=True)
        return [_cut(Text(f"{row.name} {figures}"), width) for row, figures in bare]
    legend.append("  holds  ")
    for kind, glyph in zip(KINDS, glyphs.kinds, strict=True):
        if kind != "reading" or any(spent[kind]):
            legend.append(f"{glyph} ", COLOURS[kind])
            legend.append(f"{kind}  " if wide else f"{kind[:4]} ")
    lines = [_cut(legend, width)]
    for row, share, figures in zip(rows, shares, right, strict=True):
        bar = spent_bar(row.seconds, longest, room, glyphs)
        bar.append(" " * (room - bar.cell_len))
        lines.append(Text.assemble(f"{row.name:<{names}}{share:>7}  ", bar, f"  {figures}"))
    return lines


def _figures(row: RankRow, wide: bool) -> str:
    whole = max(1e-9, sum(row.seconds))
    waits = f"{100 * row.seconds[KINDS.index('waiting')] / whole:3.0f} %"
    if not wide:
        return waits
    compute = _seconds_text(row.seconds[KINDS.index("compute")])
    return f"computes {compute:>7}, waits {waits}"


def _seconds_text(seconds: float) -> str:
    """Format seconds: ``0.36 ms``, ``36 ms``, ``1.2 s``."""
    if seconds >= 1:
        return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{1e3 * seconds:.{0 if seconds >= 0.01 else 1 if seconds >= 1e-3 else 2}f} ms"


def _cut(text: Text, width: int) -> Text:
    text.truncate(width)
    return text
