"""Real runs in real terminals, in pipes and in files: what is seen, and what is left behind."""

import os
import re
import signal
import subprocess
import sys

import pytest

import hetmp
from helpers.running import HERE, MPIRUN, SYNTHETIC, TRAIN, environment, hetmp_run
from helpers.terminals import STAMP, Terminal, plain, screen
from hetmp.run.progress.terminal import Process, find_terminal

PROGRAM = (sys.executable, "-m", "hetmp.cli", *TRAIN, *SYNTHETIC, "--samples", "1500")
"""With as many images as digits has."""
HIDDEN = "\x1b[?25l"
FRAME = "─ digits on synthetic ─"
"""Its title; above it the network is told without these lines."""


def under_mpirun(ranks, *words):
    return (str(MPIRUN), "-n", str(ranks), *PROGRAM, *words)


@pytest.fixture
def terminal():
    """Starts programs in terminals of their own."""
    opened = []

    def start(command, columns=80, lines=24, **more):
        more = {"TERM": "xterm-256color", **more}
        opened.append(Terminal(command, columns, lines, cwd=HERE, env=environment(**more)))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


# --- which terminal -------------------------------------------------------------------------------

MODULE = HERE.parent / "src" / "hetmp" / "run" / "progress" / "terminal.py"
FOUND = f"""
import os, runpy, sys
found = runpy.run_path("{MODULE}")["find_terminal"](sys.stdout)
rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
if rank == "0":
    print("found", found and found.size(), found and found.errors, flush=True)
"""
PYTHON = f"{sys.executable} -c '{FOUND}'"


@pytest.mark.parametrize(
    "command, found",
    {
        "alone": (PYTHON, "found (90, 30) True"),
        "under mpirun": (f"{MPIRUN} -n 2 {PYTHON}", "found (90, 30) True"),
        "errors elsewhere": (f"{MPIRUN} -n 2 {PYTHON} 2>/dev/null", "found (90, 30) False"),
        "mpirun into a pipe": (f"{MPIRUN} -n 2 {PYTHON} | cat", "found None None"),
        "each rank into a pipe": (
            f"{MPIRUN} -n 2 sh -c '$0 -c \"$1\" | cat' {sys.executable} '{FOUND}'",
            "found None None",
        ),
        "mpirun in the background": (f"set -m; {MPIRUN} -n 2 {PYTHON} & wait", "found None None"),
        "alone in the background": (f"set -m; {PYTHON} & wait", "found None None"),
        "alone into a pipe": (f"{PYTHON} | cat", "found None None"),
    }.values(),
    ids=lambda value: value if value.startswith("found") else "",
)
def test_the_terminal_is_the_one_where_the_output_is_seen(terminal, command, found):
    printed, code = terminal(["bash", "-c", command], 90, 30).read_to_the_end()
    assert code == 0, printed
    assert found in printed


def test_a_stream_that_is_no_file_has_no_terminal(capsys):
    assert find_terminal(sys.stdout) is None


def test_the_system_tells_of_programs():
    own = Process.of(os.getpid())
    assert own is not None and own.parent == os.getppid()
    assert [process.number for process in own.ancestry()][:2] == [os.getpid(), os.getppid()]
    assert Process.of(1 << 30) is None


# --- in a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [None, 3])
def test_in_a_terminal_there_is_a_frame_while_it_runs(terminal, ranks):
    words = ("--steps", "45", "--weights", "70,25,5") if ranks else ("--steps", "45")
    command = under_mpirun(ranks, *words) if ranks else (*PROGRAM, *words)
    printed, code = terminal(command).read_to_the_end()
    assert code == 0, printed
    assert HIDDEN not in printed
    assert re.search(r"\x1b\[[0-9;]*32m", printed)
    left, (line, column) = screen(printed)
    # In the end the frame is gone, and what was said is not.
    assert not any(FRAME in told or "computes" in told for told in left)
    said = [told for told in left if told.startswith("epoch")]
    assert [told.split()[3] for told in said] == ["15/45", "30/45", "45/45"]
    assert left[line - 1].endswith(f"after 45 steps on {ranks or 1} rank" + "s" * (ranks == 3))
    assert column == 0
    frames = plain(printed).split(FRAME)[1:]
    rows = [set(re.findall(r"│ (\d+) +\d+ % ", frame)) for frame in frames]
    assert rows[-1] == set("012" if ranks else "0")


@pytest.mark.parametrize(
    "ranks, name",
    [pytest.param(None, "TERM", marks=pytest.mark.thorough), (None, "KILL"), (2, "TERM")],
)
def test_a_run_that_is_ended_leaves_the_terminal_usable(terminal, ranks, name):
    command = under_mpirun(ranks) if ranks else PROGRAM
    seen = terminal((*command, "--epochs", "1000"))
    seen.read_until(FRAME)
    seen.process.send_signal(signal.Signals[f"SIG{name}"])
    printed, code = seen.read_to_the_end()
    assert code != 0
    assert HIDDEN not in printed
    _, (_, column) = screen(re.sub(r"\n(?!\r)", "\n\r", printed))
    assert column == 0


def test_the_frame_follows_the_size_of_the_terminal(terminal):
    seen = terminal((*PROGRAM, "--epochs", "1000", "--view", "live"), 100, 30)
    seen.read_until(FRAME)
    seen.resize(70, 20)
    border = f"╭{FRAME}" + "─" * (70 - len(FRAME) - 2) + "╮"
    seen.read_until(border)
    seen.resize(40, 20)
    seen.read_until("█ comp ▒ exch")


def test_an_error_leaves_no_frame(terminal):
    words = ("--model", "own_network:diverging", "--lr", "1e30", "--optimizer", "sgd")
    printed, code = terminal((*PROGRAM, *words)).read_to_the_end()
    left, _ = screen(printed)
    assert code != 0
    assert any("hetmp: error: the loss is" in line for line in left)
    assert not any("─ own_network" in line for line in left)


def test_without_colours_there_are_none(terminal):
    printed, _ = terminal((*PROGRAM, "--steps", "3"), NO_COLOR="1").read_to_the_end()
    assert FRAME in plain(printed)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", printed)


@pytest.mark.parametrize("case", ["dumb", "lines", "a pipe"])
def test_where_no_frame_can_be_or_is_wanted_there_are_lines(terminal, case):
    words, more = (*PROGRAM, "--steps", "16"), {}
    if case == "dumb":
        more = {"TERM": "dumb"}
    elif case == "lines":
        words = (*words, "--view", "lines")
    if case == "a pipe":
        done = hetmp_run(*TRAIN, "--steps", "16", "--view", "auto", TERM="xterm", FORCE_COLOR="1")
        printed = done.stdout
    else:
        printed, _ = terminal(words, **more).read_to_the_end()
    assert "\x1b[" not in printed.replace("\x1b[1m", "").replace("\x1b[0m", "")
    said = [line for line in printed.splitlines() if "epoch" in line]
    assert len(said) == 2
    assert all(re.match(f"{STAMP}epoch   [12]  step    1[56]/16  loss ", line) for line in said)


def test_a_frame_can_be_asked_for_anywhere():
    done = hetmp_run(*PROGRAM[3:], "--steps", "3", "--view", "live", COLUMNS="100", TERM="xterm")
    assert f"╭{FRAME}" + "─" * (100 - len(FRAME) - 2) + "╮" in plain(done.stdout)


# --- elsewhere ------------------------------------------------------------------------------------


def test_lines_of_ranks_begin_with_the_time_and_say_who_waits():
    done = hetmp_run(*TRAIN, "--weights", "70,25,5", "--epochs", 2, ranks=3)
    lines = done.stdout.splitlines()
    headline = next(i for i, line in enumerate(lines) if "digits on digits" in line)
    assert all(re.match(STAMP, line) for line in lines[headline:-1])
    said = [line for line in lines if "  epoch " in line]
    assert len(said) == 2
    for line in said:
        assert re.search(r"  0:\d\d left  rank [012] computes \d+ %, exchanges \d+ %", line)
    assert not re.match(STAMP, lines[-1])


def test_quiet_prints_nothing(tmp_path):
    out = tmp_path / "run"
    done = hetmp_run(*TRAIN, "--steps", 2, "--quiet", "--out", out, ranks=3)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (out / "model.h5").exists()


def test_quiet_is_not_silent_about_errors():
    done = hetmp_run(*TRAIN, "--quiet", "--model", "own_network:diverging", ranks=2)
    assert done.stdout == ""
    assert "hetmp: error: the loss is" in done.stderr


@pytest.mark.parametrize("quiet", [False, True])
def test_the_first_rank_that_takes_part_speaks(tmp_path, quiet):
    graph = hetmp.read_graph(*_digits())
    plan = hetmp.plan_from_weights(graph, (2.0, 1.0)).spread((1, 2), 3)
    plan.save(tmp_path / "plan.json")
    flags = ["--quiet"] if quiet else []
    done = hetmp_run(
        *TRAIN, "--steps", 2, "--plan", tmp_path / "plan.json", *flags, ranks=3
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if quiet:
        assert done.stdout == ""
    else:
        assert len(re.findall(f"(?m)^{STAMP}epoch   1  step     2/2", done.stdout)) == 1
        assert "2 of 3 ranks" in done.stdout


def _digits():
    import torch

    from hetmp import data, models

    digits = data.load("digits", seed=0)
    module = models.build("digits", digits.input_shape, digits.classes)
    return module, torch.empty((2, *digits.input_shape), device="meta")


def test_ctrl_c_ends_all_ranks_at_once(terminal):
    seen = terminal((*under_mpirun(3), "--epochs", "1000", "--slowdown", "1,2,4"))
    seen.read_until(FRAME)
    os.write(seen._own, b"\x03")
    printed, code = seen.read_to_the_end()
    assert code != 0
    assert "Traceback" not in printed
    running = subprocess.run(
        ["ps", "-o", "args=", "-s", str(seen.process.pid)], capture_output=True
    )
    assert running.stdout == b""
