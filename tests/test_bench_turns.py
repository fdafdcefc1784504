"""The turns of ``hetmp bench``: how far it is, how long it takes, and where it ends."""

import io
import re
import sys

import numpy as np
import pytest
from rich.console import Console

import hetmp
from helpers.running import HERE, MPIRUN, environment, hetmp_run, refused
from helpers.terminals import STAMP, Terminal, plain, screen
from hetmp.cluster.slowdown import Slowdown
from hetmp.core.errors import HetmpError
from hetmp.run.progress.view import Lines, Silent
from hetmp.tools.bench.measure import _take_turns
from hetmp.tools.bench.progress import (
    LONG,
    PAUSES,
    WARM_UP,
    Timetable,
    TurnFrame,
    TurnProgress,
)
from hetmp.tools.bench.variants import Variant

SMALL = ("bench", "digits", "--batch-size", 4)


class Clock:
    """Shows the time that it is set to, and goes on by *each* whenever it is read."""

    def __init__(self, each=0.0):
        self.now, self.each = 1000.0, each

    def __call__(self):
        self.now += self.each
        return self.now


def after(turns, repeats=10, limit=None, places=None, clock=None, first=8.0):
    """A timetable after so many turns of two variants; the very first step takes longer.

    Args:
        places: seconds of the two steps of each variant in a turn.
        first: seconds that the very first step takes more.
    """
    clock = clock or Clock()
    timetable = Timetable(repeats, limit, clock)
    places = places or {"sliced": 2.0, "floor": 1.0}
    timetable.start(list(places))
    for turn in range(turns):
        for name, seconds in places.items():
            timetable.begin(turn, name)
            clock.now += seconds + (first if turn == 0 and name == "sliced" else 0.0)
            timetable.end(seconds / 2)
    return timetable


# --- how long it takes ----------------------------------------------------------------------------


def test_nothing_is_estimated_before_each_variant_has_run():
    timetable = after(0)
    assert timetable.left is None
    timetable.begin(0, "sliced")
    timetable.end(1.0)
    assert timetable.left is None
    assert timetable.texts() == ("warming up sliced", "turn 1 of 3")


def test_what_the_first_step_makes_ready_is_no_measure_of_the_others():
    turns = WARM_UP + 10
    for done in range(1, turns + 1):
        assert after(done).left == pytest.approx(3.0 * (turns - done))


def test_the_rest_of_a_turn_counts():
    timetable = after(5, clock=(clock := Clock()))
    timetable.begin(5, "floor")
    assert timetable.left == pytest.approx(3.0 * 8)
    clock.now += 1.0
    timetable.end(0.5)
    assert timetable.left == pytest.approx(2.0 + 3.0 * 7)
    assert timetable.timed == 2


def test_a_limit_ends_after_the_turn_in_which_it_is_reached():
    # 8 s more in the first of 3 s each: after n turns, 8 + 3 n.
    assert after(4, limit=27.0).left == pytest.approx(9.0)
    assert after(4, limit=26.0).left == pytest.approx(6.0)
    assert after(4, limit=1000.0).left == after(4).left


def test_texts_say_what_is_done_and_how_far_it_is():
    timetable = after(2)
    timetable.begin(2, "floor")
    assert timetable.texts() == ("warming up floor", "turn 3 of 3, 0:33 left")
    timetable = after(5)
    timetable.begin(5, "floor")
    assert timetable.texts() == ("timing floor", "2 of 10 turns done, 0:24 left")
    timetable.preparing = "batch:6"
    assert timetable.texts() == ("preparing batch:6", "")


# --- how it is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 40, 20, 1])
@pytest.mark.parametrize("turns", [0, 2, 7])
def test_the_line_fits(columns, turns):
    places = {"one process, channels_last": 1.0, "sliced": 1.0}
    frame = TurnFrame(timetable := after(turns, places=places))
    timetable.begin(turns, "one process, channels_last")
    console = Console(file=io.StringIO(), width=columns, height=24, force_terminal=True)
    console.print(frame, end="")
    shown = plain(console.file.getvalue()).split("\n")
    assert len(shown) == 3  # the cursor is below an empty line
    assert len(shown[0]) < max(2, columns)
    if columns == 80 and turns:
        assert "one process, channels_last  ━" in shown[0]
        assert shown[0].endswith("0:12 left" if turns == 7 else "0:22 left")


def test_lines_come_sooner_at_first_and_to_standard_error(capsys):
    clock = Clock()
    lines = Lines(clock, errors=True, pauses=PAUSES)
    assert lines.stands(None, at_once=True)
    assert not lines.stands(None)
    due = []
    for _ in range(600):
        clock.now += 1
        if lines.stands(None):
            lines.say("turn")
            due.append(clock.now - 1000)
    assert due[:3] == [3, 6, 9]
    assert np.diff(due).max() == PAUSES[1]
    assert len(due) < 40
    said = capsys.readouterr()
    assert (said.out, said.err.count("turn")) == ("", len(due))


class Kept(Silent):
    """Keeps what is to be shown at once."""

    def __init__(self):
        self.shown = []

    def stands(self, standing, at_once=False):
        if at_once:
            self.shown.append(standing.texts()[0])
        return False


@pytest.mark.parametrize("seconds", [LONG, LONG / 10])
def test_a_slow_first_turn_is_shown_variant_by_variant(seconds):
    view, clock = Kept(), Clock()
    progress = TurnProgress(Timetable(2, None, clock), view)
    progress.prepare("sliced")
    progress.timetable.start(["sliced", "floor"])
    for turn in range(3):
        for name in ("sliced", "floor"):
            progress.begin(turn, name)
            clock.now += seconds
            progress.timetable.end(seconds / 2)
    first = ["warming up sliced", "warming up floor"] if seconds >= LONG else ["warming up sliced"]
    assert view.shown == ["preparing sliced", *first, "warming up sliced"]


# --- where it ends --------------------------------------------------------------------------------


def turns_until(limit, repeats=50):
    """Take turns of two variants; a rank's clock goes on by its number and 1 at each look."""
    group = hetmp.Group()
    timetable = Timetable(repeats, limit, Clock(1.0 + group.rank))
    variants = {name: Variant(lambda: None) for name in ("sliced", "floor")}
    progress = TurnProgress(timetable, Silent())
    seconds, _ = _take_turns(group, variants, Slowdown(), progress)
    counts = {len(of_variant) for of_variant in seconds.values()}
    assert len(counts) == 1
    (count,) = counts
    assert set(group.allgather(np.array([count])).ravel()) == {count}
    return count


@pytest.mark.mpi
def test_all_ranks_stop_after_the_same_turn():
    # Rank 0 looks three times for each variant: 6 a turn, WARM_UP of which are not timed.
    assert turns_until(6.0 * WARM_UP + 60.0) in (10, 11)
    assert turns_until(6.0 * WARM_UP + 3.5) == 1
    assert turns_until(None, repeats=3) == 3


@pytest.mark.mpi
def test_a_limit_within_the_warm_up_is_refused_with_what_would_do():
    with pytest.raises(HetmpError, match=r"9 s, was over in warm-up turn 2 of 3.*: give \d+ sec"):
        turns_until(9.0)


def test_the_command_says_how_far_it_is_beside_its_results(tmp_path):
    file = tmp_path / "results.jsonl"
    only = ("--only", "batch,floor,batch:1", "--repeats", 2, "--seconds", 100)
    done = hetmp_run(*SMALL, *only, "--append", file, ranks=2)
    assert done.returncode == 0, done.stderr
    for told in ("preparing batch:1", r"warming up \S+, turn 2 of 3, \d:\d\d left"):
        assert re.search(f"^{STAMP}{told}$", done.stderr, re.MULTILINE), done.stderr
    assert "batch / this" in done.stdout
    assert not re.search("preparing|warming", done.stdout + file.read_text())


def test_the_command_says_that_the_time_is_too_short():
    short = hetmp_run(*SMALL, "--only", "floor", "--seconds", 1e-6, ranks=2)
    refused(short, "was over in warm-up turn 1 of 3", "smaller batch", code=2)
    refused(hetmp_run(*SMALL, "--seconds", 0), "--seconds", "0")


def test_in_a_terminal_a_line_is_redrawn_and_then_gone():
    words = map(str, (*SMALL, "--only", "sliced,floor", "--repeats", "2"))
    command = (str(MPIRUN), "-n", "2", sys.executable, "-m", "hetmp.cli", *words)
    terminal = Terminal(command, cwd=HERE, env=environment(TERM="xterm-256color"))
    try:
        printed, code = terminal.read_to_the_end()
    finally:
        terminal.close()
    assert code == 0, printed
    assert "preparing sliced" in plain(printed)
    assert re.search(r"warming up \w+ +━*─* +turn \d of 3, 0:\d\d left", plain(printed))
    left, _ = screen(printed)
    assert not any(re.search("preparing|warming|timing", line) for line in left)
    assert any(line.startswith("floor ") for line in left)
