"""How commands end: exit codes, and one voice of many ranks. Resumable ends: test_interruption."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.running import SYNTHETIC, TRAIN, environment, hetmp_run, refused
from hetmp.core.errors import FailedError, HetmpError, describe, exit_code, grace_seconds

PROGRAM = [sys.executable, "-m", "hetmp.cli"]


def test_done_is_0_and_bad_input_is_2_alone_and_on_ranks():
    assert hetmp_run("explain", "digits", "--weights", "2,1").returncode == 0
    assert hetmp_run("explain", "digits", "--weights", "2,1", ranks=3).returncode == 0
    for ranks in (None, 3):
        refused(hetmp_run("explain", "digits", ranks=ranks), "--weights", code=2)
        refused(hetmp_run("explain", ranks=ranks), "missing argument 'MODEL'", code=2)
        refused(hetmp_run("explain", "digits", "--weights", ranks=ranks), "'--weights'", code=2)


def test_the_message_says_where_to_look():
    said = refused(hetmp_run("plan", "digits", "--memory-limit", "much"), "--memory-limit", code=2)
    assert said.endswith("(hetmp plan --help says more)")


SPOKEN = """
import sys
from hetmp.cli import main, program
from hetmp.cluster import Group, launched
from hetmp.core.errors import FailedError, HetmpError
import warnings

def explain():
    rank = launched()[0] if launched() else 0
    group = Group() if "{mpi}" else None
    warnings.warn(f"{warning}")
    {body}

import click
program._Commands.get_command = lambda self, ctx, name: click.Command(name, callback=explain)
sys.argv = ["hetmp", "explain"]
main()
"""


def spoken(body, ranks=3, mpi="yes", warning="one warning", **more):
    """What a command says in the place of explain whose body is Python."""
    script = SPOKEN.format(body=body, mpi=mpi, warning=warning)
    return hetmp_run(module=("-c", script), ranks=ranks, **more)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("raise HetmpError('7 is too much: give 6')", 2, "7 is too much: give 6"),
        ("raise FailedError('the disk is full')", 1, "the disk is full"),
        ("raise OSError(28, 'No space left on device', 'a/b')", 1, "No space left on device: a/b"),
        ("raise PermissionError(13, 'Permission denied', 'a/b')", 2, "Permission denied: a/b"),
    ],
)
def test_of_many_ranks_that_fail_alike_one_speaks(body, code, words):
    refused(spoken(body), words, code=code)


def test_before_mpi_bad_input_is_told_once_and_another_error_by_each_rank_in_a_line():
    refused(spoken("raise HetmpError('7 is too much: give 6')", mpi=""), "7 is too much", code=2)
    done = spoken("raise KeyError('gone')", mpi="")
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1
    said = [line for line in done.stderr.splitlines() if "hetmp: error:" in line]
    assert sorted(said)[0] == "hetmp: error: rank 0: KeyError: 'gone'"
    assert all("KeyError: 'gone' (<string>, line 12)" in line for line in sorted(said)[1:])


def test_an_error_of_the_code_is_shown_with_its_place_once():
    done = spoken("raise KeyError('gone')")
    assert done.returncode == 1
    assert done.stderr.count("hetmp: error: KeyError: 'gone'\n") == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1


def test_agreed_errors_keep_their_code():
    failing = "exec('with group.together():\\n    if rank == 1: raise {}')".format
    done = spoken(failing('OSError(28, "No space", "f")'))
    refused(done, "rank 1: No space: f", code=1)
    refused(spoken(failing('HetmpError("much")')), "rank 1: much", code=2)


def test_a_rank_that_fails_alone_before_mpi_says_who_it_is():
    done = spoken("rank == 2 and int('x')", mpi="", warning="of rank {rank}")
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    said = [line for line in lines if "hetmp: error:" in line]
    assert len(said) == 1 and said[0].startswith("hetmp: error: rank 2: ValueError: ")
    assert any(line.startswith("rank 2: ") and "of rank 2" in line for line in lines)
    assert not any("of rank 1" in line for line in lines)


def test_warnings_are_shown_once_unless_they_are_asked_for():
    done = spoken("pass")
    assert done.returncode == 0
    assert done.stderr.count("UserWarning: one warning") == 1
    done = spoken("pass", cold=True, PYTHONWARNINGS="default")
    for rank in (1, 2):
        found = [line for line in done.stderr.splitlines() if line.startswith(f"rank {rank}: ")]
        assert len(found) == 1 and found[0].endswith("UserWarning: one warning")


def test_what_a_rank_says_is_written_in_one_piece():
    """A datagram holds what was written at once."""
    script = (
        "import warnings\n"
        "from hetmp.core.error_report import hold_warnings, report\n"
        "hold_warnings(3)\n"
        "warnings.warn('before')\n"
        "try: {}['gone']\n"
        "except KeyError as error: report(error, 'rank 3: ')\n"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    subprocess.run([sys.executable, "-c", script], stderr=theirs, env=environment(), check=True)
    theirs.close()
    ours.setblocking(False)
    said = ours.recv(1 << 16).decode()
    assert said.startswith("rank 3: <string>:4: UserWarning: before\n")
    assert "Traceback" in said and said.endswith("hetmp: error: rank 3: KeyError: 'gone'\n")
    with pytest.raises(BlockingIOError):
        ours.recv(1 << 16)


# --- the reader, the disk, the user --------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["models"], [*TRAIN, *SYNTHETIC, "--steps", "1"]])
def test_a_reader_that_goes_away_is_told_nothing(words):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*PROGRAM, *words], stdout=write, stderr=subprocess.PIPE, text=True, env=environment(),
        timeout=120,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["--help"], ["models"], [*TRAIN, *SYNTHETIC, "--steps", "1"]])
def test_an_output_that_is_full_is_one_message(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(),
            timeout=120,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "hetmp: error: No space left on device\n")


def test_ctrl_c_ends_at_once_and_without_a_word():
    """Whenever it comes: while torch is imported, or in the middle of a step. Shells say 130."""
    for after in (1.5, 4.0):
        run = subprocess.Popen(
            [*PROGRAM, *TRAIN, *SYNTHETIC, "--epochs", "2000"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        time.sleep(after)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
        assert run.returncode == -signal.SIGINT
        # Before the program itself runs, Python says what it was about to import.
        assert said == "" or ("KeyboardInterrupt" in said and "main()" not in said)


def test_the_codes_of_errors():
    assert exit_code(HetmpError("x")) == 2
    assert exit_code(FailedError("x")) == 1
    assert exit_code(MemoryError()) == 1
    assert exit_code(OSError(errno.EROFS, "Read-only file system", "/x")) == 2
    assert exit_code(OSError(errno.ENOSPC, "No space left on device")) == 1
    assert describe(OSError(errno.EACCES, "Permission denied", "/x")) == "Permission denied: /x"
    assert describe(OSError("gone")) == "OSError: gone"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0.5", 0.5), ("0", 0), ("", 3), ("soon", 3), ("-1", 3), ("nan", 3), ("inf", 3)],
)
def test_how_long_ranks_wait_for_each_others_words_can_be_set(monkeypatch, value, seconds):
    monkeypatch.setenv("HETMP_GRACE_SECONDS", value)
    assert grace_seconds() == seconds
