"""What is worked out of a run while it goes on: its speed, its lines, its frame."""

import io
import re

import pytest
from rich.console import Console

from helpers.terminals import STAMP
from hetmp.run.metrics import KINDS
from hetmp.run.progress import RunDescription
from hetmp.run.progress.bars import ASCII, BLOCKS, apart, curve, done_bar, spent_bar
from hetmp.run.progress.frame import Frame, rows_for
from hetmp.run.progress.lines import clock_text, epoch_line, rate_text, step_line, waiting_line
from hetmp.run.progress.status import POINTS, RECENT, Curve, Standing
from hetmp.run.progress.view import SIGN_OF_LIFE_SECONDS, Lines


class Clock:
    """Shows the time that it is set to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def spent(compute, exchange=0.25, reading=0.0):
    """The seconds of a step in which the slowest rank does not wait."""
    waiting = [max(compute) - own for own in compute]
    seconds = (compute, [exchange] * len(compute), waiting, [reading] * len(compute))
    return dict(zip(KINDS, map(list, seconds), strict=True))


def standing(ranks=3, steps=7, clock=None, before=0, compute=None):
    """A run of 60 steps, 20 an epoch, that has taken *steps* of 2 s with 64 images."""
    clock = clock or Clock()
    shares = [float(ranks - rank) for rank in range(ranks)]
    made = Standing(RunDescription("digits on digits", shares, 60, 20, before), clock)
    made.begin()
    for step in range(before, before + steps):
        clock.now += 2
        compute_now = compute or [1 + 0.5 * rank for rank in range(ranks)]
        made.took(step + 1, step // 20, 2 / (1 + step), 0.5, 64, spent(compute_now))
    return made


# --- how far, how fast ----------------------------------------------------------------------------


def test_speed_is_told_of_all_steps_of_the_epoch_and_of_the_last_ones():
    clock = Clock()
    made = standing(steps=20, clock=clock)
    clock.now += 100  # an evaluation
    made.evaluated(0.75, 100.0)
    assert made.images_per_second_of_epoch == pytest.approx(32)
    for step in range(20, 40):
        clock.now += 1
        made.took(step + 1, 1, 0.1, 0.5, 64, spent([1.0, 1.0, 1.0]))
    assert made.images_per_second == pytest.approx(40 * 64 / 60)
    assert made.images_per_second_of_epoch == pytest.approx(64)
    assert made.recent_images_per_second == pytest.approx(RECENT * 64 / (20 + 2 * 12))
    assert made.recent_seconds == pytest.approx((20 + 2 * 12) / RECENT)
    assert (made.batch, made.epoch, made.run.epochs) == (20, 1, 3)
    assert made.elapsed == pytest.approx(160)


def test_time_left_counts_evaluations_and_not_what_the_first_step_made_ready():
    clock = Clock()
    made = Standing(RunDescription("x", (1.0,), 60, 20), clock)
    made.begin()
    assert made.left is None
    clock.now += 500  # much is made ready
    made.took(1, 0, 1.0, 0.5, 8, spent([1.0]))
    for step in range(1, 20):
        clock.now += 3
        made.took(step + 1, 0, 1.0, 0.5, 8, spent([1.0]))
    assert made.left == pytest.approx(40 * 3)
    made.evaluated(0.5, 10.0)
    assert made.left == pytest.approx(40 * 3 + 2 * 10)


def test_a_resumed_run_tells_its_own_speed():
    made = standing(before=30, steps=5)
    assert made.left == pytest.approx(25 * 2)
    assert made.images_per_second == pytest.approx(32)
    assert (made.epoch, made.batch) == (1, 15)
    fresh = Standing(RunDescription("x", (1.0,), 60, 20, before=60))
    assert (fresh.step, fresh.batch, fresh.recent_by_rank()) == (60, 20, {})


def test_seconds_of_the_ranks_are_means_of_the_last_steps():
    made = standing(steps=RECENT, compute=[9.0, 9.0])
    for step in range(RECENT, RECENT + RECENT // 2):
        made.took(step, 0, 1.0, 0.5, 8, spent([1.0, 3.0]))
    told = made.recent_by_rank()
    assert told["compute"] == pytest.approx([5.0, 6.0])
    assert told["waiting"] == pytest.approx([1.0, 0.0])


def test_a_curve_keeps_its_form_and_its_size():
    drawn = Curve()
    for value in range(50 * POINTS):
        drawn.add(float(value))
        drawn.add(float("nan"))
    assert POINTS // 2 <= len(drawn.points) < POINTS
    gaps = {b - a for a, b in zip(drawn.points, drawn.points[1:], strict=False)}
    assert gaps == {float(drawn.each)}
    assert drawn.points[0] == (drawn.each - 1) / 2


# --- lines ----------------------------------------------------------------------------------------


def test_lines_say_where_the_run_is():
    made = standing()
    assert step_line(made) == (
        "epoch   1  step     7/60  loss 0.2857  batch 50.00 %      32 images/s  1:46 left"
    )
    made.evaluated(0.9875, 4.0)
    assert epoch_line(made) == (
        "epoch   1  step     7/60  loss 0.2857  test 98.75 %      32 images/s  1:54 left"
    )


def test_the_rank_that_waits_most_is_told():
    assert waiting_line(spent([1.0, 4.0, 3.0], exchange=1.0)) == (
        "rank 0 computes 20 %, exchanges 20 %, waits 60 %"
    )
    assert waiting_line(spent([3.0], exchange=0.0)) == ""
    assert waiting_line(spent([3.0], 0.0, 1.0)) == "rank 0 computes 75 %, reads 25 %"
    assert waiting_line({}) == ""


def test_figures_are_short():
    assert [clock_text(s) for s in (None, 7.4, 59.6, 3599, 360000)] == [
        "?", "0:07", "1:00", "59:59", "100:00:00"
    ]  # fmt: skip
    assert [rate_text(rate) for rate in (0.42, 9.96, 12345.6)] == [
        "0.4 images/s", "10 images/s", "12346 images/s"
    ]  # fmt: skip


def test_a_line_is_due_when_there_was_none_for_a_minute(capsys):
    clock = Clock()
    lines = Lines(clock)
    made = standing()
    clock.now += SIGN_OF_LIFE_SECONDS - 1
    assert not lines.stands(made)
    clock.now += 1
    assert lines.stands(made)
    lines.say("one\ntwo")
    assert not lines.stands(made)
    assert re.fullmatch(f"{STAMP}one\n{STAMP}two\n", capsys.readouterr().out)


# --- bars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 7, 40])
@pytest.mark.parametrize("parts", [(1,), (0, 1), (1, 1, 1), (3, 1, 0, 5), (1e-9, 1, 1e-9)])
def test_shares_fill_the_width(parts, width):
    counts = apart(parts, width)
    assert sum(counts) == width
    for part, count in zip(parts, counts, strict=True):
        assert abs(count - width * part / sum(parts)) < 1 + 1e-9


def test_bars_are_told_apart_without_colours():
    bar = spent_bar((4.0, 2.0, 3.0, 1.0), 10.0, 20, BLOCKS)
    assert bar.plain == "████████▒▒▒▒······▚▚"
    assert spent_bar((4.0, 2.0, 0.0, 0.0), 10.0, 10, ASCII).plain == "####=="
    assert spent_bar((0.0, 0.0, 0.0, 0.0), 0.0, 10, BLOCKS).plain == ""
    assert done_bar(0.5, 8, BLOCKS).plain == "━━━━────"
    assert done_bar(0.999, 8, ASCII).plain == "=======-"
    assert done_bar(1.0, 8, ASCII).plain == "========"


def test_a_curve_falls_as_its_values_do():
    assert curve([100, 10, 1], 10, BLOCKS) == "█▅▁"  # on a logarithmic scale
    assert curve([2, 1, 0], 10, BLOCKS) == "█▅▁"
    assert curve([5, 3, 3, 1, 1, -1], 3, BLOCKS) == "█▅▁"  # of two values each
    assert curve([1, 1], 10, BLOCKS) == "▁▁"
    assert curve([1], 10, BLOCKS) == ""


def test_of_many_ranks_the_slowest_and_the_fastest_are_seen():
    ranks = 64
    compute = [float((7 * rank) % ranks) for rank in range(ranks)]
    rows = rows_for([1.0] * ranks, spent(compute), 9)
    slowest = sorted(range(ranks), key=lambda rank: -compute[rank])
    assert [row.name for row in rows] == [
        *map(str, slowest[:4]), "56 others", *map(str, slowest[-4:])
    ]  # fmt: skip
    mean = sum(sorted(compute)[4:-4]) / 56
    assert rows[4].seconds[0] == pytest.approx(mean)
    assert rows[4].share == pytest.approx(1 / 64)
    assert len(rows_for([1.0] * ranks, spent(compute), 64)) == 64
    assert [row.name for row in rows_for([1.0] * ranks, spent(compute), 1)] == [str(slowest[0])]


# --- the frame ------------------------------------------------------------------------------------


def drawn(made, columns, lines, encoding="utf-8", **options):
    """The frame's lines, as a console of that size shows it, and what it has printed.

    The frame ends in an empty line, for the cursor.
    """
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=file, width=columns, height=lines, force_terminal=True, record=True, **options
    )
    console.print(Frame(made), end="")
    file.seek(0)
    text = console.export_text()
    assert text.endswith("\n\n")
    return text[:-2].split("\n"), file.read()


@pytest.mark.parametrize("ranks", [1, 3, 64])
@pytest.mark.parametrize(
    "columns, lines", [(80, 24), (40, 24), (200, 60), (80, 10), (80, 5), (12, 3), (1, 1)]
)
def test_the_frame_fits_and_leaves_a_line_for_the_cursor(ranks, columns, lines):
    for made in (standing(ranks), standing(ranks, steps=0)):
        shown, _ = drawn(made, columns, lines)
        assert 1 <= len(shown) <= max(1, lines - 1)
        assert max(map(len, shown)) <= columns


def test_the_frame_has_all_that_matters_at_80_columns():
    made = standing(ranks=3, steps=25)
    made.evaluated(0.96, 1.0)
    shown, _ = drawn(made, 80, 24)
    text = "\n".join(shown)
    for words in (
        "digits on digits", "25/60", "epoch 2/3", "5/20", "0.0800", "batch 50.00 %",
        "test 96.00 %", "32 images/s", "2.0 s a step", "1:12 left", "█ compute", "· waiting",
        "3 ranks",
    ):  # fmt: skip
        assert words in text
    rows = [line for line in shown if "computes" in line]
    assert [re.search(r"│ (\d) .* (\d+) %  [█▒·]", row).groups() for row in rows] == [
        ("0", "50"), ("1", "33"), ("2", "17")
    ]  # fmt: skip
    filled = [row.count("█") for row in rows]
    waits = [row.count("·") for row in rows]
    assert filled == sorted(filled) and len(set(filled)) == 3
    assert waits == sorted(waits, reverse=True) and waits[-1] == 0
    assert len({row.count("▒") for row in rows}) <= 2  # the same share, rounded
    assert len({len(row) for row in shown}) == 1


def test_a_narrow_frame_still_shows_who_waits():
    shown, _ = drawn(standing(ranks=3), 40, 24)
    rows = shown[-3:]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row.count("·") > 0 for row in rows] == [True, True, False]
    assert [row.split()[-2:] for row in rows] == [["44", "%"], ["22", "%"], ["0", "%"]]


def test_a_low_frame_shows_the_run_first():
    shown, _ = drawn(standing(ranks=3), 80, 3)
    assert shown[0].startswith("run") and shown[1].startswith("epoch")


def test_many_ranks_are_summed_up():
    shown, _ = drawn(standing(ranks=64), 80, 24)
    assert any("others" in row for row in shown)
    assert not any("others" in row for row in drawn(standing(ranks=64), 200, 90)[0])


def test_reading_is_in_the_legend_where_it_took_time():
    made = standing(ranks=1)
    assert "reading" not in "\n".join(drawn(made, 80, 24)[0])
    made.took(8, 0, 1.0, 0.5, 8, spent([1.0], 0.0, 1.0))
    assert "▚ reading" in "\n".join(drawn(made, 80, 24)[0])


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch):
    _, coloured = drawn(standing(), 80, 24, color_system="standard")
    assert "\x1b[32m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    shown, plain = drawn(standing(), 80, 24, color_system="standard")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", plain)
    assert "█" in "".join(shown)


def test_a_terminal_without_blocks_has_letters():
    shown, printed = drawn(standing(), 80, 24, encoding="iso-8859-1")
    rows = [line for line in shown if "computes" in line]
    assert all("#" in row for row in rows)
    assert printed.isascii()
