"""Running Slurm's own commands."""

import shutil
import subprocess

from hetmp.core.errors import HetmpError

SECONDS = 60
"""Time limit of a command: a busy controller answers late."""

NOBODY = ("configuration source", "Unable to contact", "fetch config")
"""Parts of the commands' messages where no controller answers."""


def available() -> bool:
    """Return whether Slurm's commands are on this machine."""
    return shutil.which("srun") is not None


def called(*command: str) -> str:
    """Run a Slurm command and return what it prints.

    Raises:
        HetmpError: it does not exist, takes too long, or fails; quotes its message.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise HetmpError(
            f"{command[0]} is not on this machine: is this a login node of a Slurm cluster? "
            "Without Slurm, jobs/mpirun.sh starts the same runs"
        ) from None
    except subprocess.TimeoutExpired:
        raise HetmpError(f"{command[0]} gave no answer within {SECONDS} s: try again") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        if any(words in line for words in NOBODY for line in lines):
            raise HetmpError(
                f"Slurm is installed, but no cluster answers here ({lines[-1].strip()}): submit "
                "from a login node; without one, jobs/mpirun.sh starts the same runs"
            )
        raise HetmpError(f"{command[0]} failed: {'; '.join(lines[-2:])}")
    # `srun --mpi=list` answers on stderr.
    return done.stdout or done.stderr
