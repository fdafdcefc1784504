"""The program as a user runs it: alone or on ranks, and what it then printed."""

import atexit
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from helpers.warm_start import Warm

HERE = Path(__file__).resolve().parents[1]
PROGRAMS = HERE / "programs"
MPIRUN = HERE.parent / "scripts" / "mpirun.sh"
LAUNCHERS = re.compile(r"^(OMPI|PMI|PMIX|PRTE|MPI_LOCAL|SLURM|HYDRA)")
TRAIN = ("train", "--model", "digits", "--data", "digits", "--batch-size", "100")

SYNTHETIC = ("--data", "synthetic", "--shape", "1,8,8", "--classes", "10")
"""Instead of digits where a program starts cold: scikit-learn is not imported."""

COLD = "HETMP_TEST_COLD" in os.environ
"""Whether every program starts from its file, as on a user's machine: three times as long."""


def environment(**more):
    """Return this process's environment without what a launcher left in it, and with *more*.

    A variable that is None is not set.
    """
    clean = {name: value for name, value in os.environ.items() if not LAUNCHERS.match(name)}
    short = {"PYTHONPATH": f"{HERE}{os.pathsep}{PROGRAMS}", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    variables = clean | short | {"HETMP_GRACE_SECONDS": "1"} | more
    return {name: value for name, value in variables.items() if value is not None}


@cache
def warm_server():
    """Start the server of this run of the tests when it is first needed; it ends with the run."""
    server = Warm.start()
    atexit.register(server.stop)
    return server


@cache
def warm_python():
    """Return the path of a ``python`` that has torch and hetmp imported already."""
    folder = tempfile.TemporaryDirectory(prefix="warm-bin-")
    atexit.register(folder.cleanup)
    warm_server().install(Path(folder.name))
    return f"{folder.name}/python"


def hetmp_run(*arguments, ranks=None, module=("-m", "hetmp.cli"), timeout=120, cold=COLD, **more):
    """Run the program, under mpirun if *ranks* is given; it must end before *timeout*.

    Args:
        module: the program: what Python is called with.
        cold: whether Python starts anew and imports all, instead of being forked: for tests of the
            start itself, of signals, of memory, and of variables that Python reads as it starts.
        more: variables of the program's environment.
    """
    python = sys.executable if cold else warm_python()
    command = [python, *module, *map(str, arguments)]
    if ranks is not None:
        command = [str(MPIRUN), "-n", str(ranks), *command]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(**more), cwd=HERE
    )


def refused(done, *words, code=None):
    """Return the one message of a run that must have failed, with that *code* if one is given."""
    assert done.returncode != 0 if code is None else done.returncode == code
    said = [line for line in done.stderr.splitlines() if "hetmp: error:" in line]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in said[0]
    return said[0]


def invoked(*arguments):
    """Run a command that needs no MPI within this process."""
    from click.testing import CliRunner

    from hetmp.cli.program import commands

    return CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False)
