"""Submitting a script to Slurm."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hetmp.slurm import called
from hetmp.submit.job import Job


@dataclass(frozen=True)
class Submitted:
    """A job in the queue.

    Attributes:
        number: as Slurm counts.
        log: where its output goes.
        run: the folder of the run; None of a job that trains nothing.
    """

    number: int
    log: Path
    run: Path | None


def submit(template: str, job: Job, script: str) -> Submitted:
    """Give a job's *script*, made from *template*, to sbatch, to run in the present folder.

    Raises:
        HetmpError: sbatch is not there or refuses it: with its own words.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sbatch")
        path.write_text(script)
        said = called("sbatch", "--parsable", str(path))
    number = int(said.strip().splitlines()[-1].partition(";")[0])
    log = job.output.replace("%x", job.name).replace("%j", str(number))
    run = job.run or os.environ.get("HETMP_RUN") or f"runs/{job.name}-{number}"
    return Submitted(number, Path(log), Path(run) if template.startswith("train") else None)
