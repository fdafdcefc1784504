"""Write a job's script from its template, and submit it to Slurm."""

import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hetmp.cluster.slurm import called
from hetmp.tools.submit.job import Job

_FILES = {"train_hetero": "train"}
"""Templates that use the file of another."""


def render(template: str, job: Job, env_file: str | Path | None = "jobs/env.sh") -> str:
    """Return the text of a job's script.

    Args:
        template: its name in ``TEMPLATES``.
        env_file: shell file that the script sources first; none if None.
    """
    environment = Environment(
        loader=PackageLoader("hetmp.tools.submit"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quoted"] = shlex.quote
    # The variables are the job's, or those that the user exported for it.
    run = job.run and shlex.quote(job.run)
    return environment.get_template(f"{_FILES.get(template, template)}.sbatch.j2").render(
        job=job,
        env_file=env_file and str(env_file),
        requeued=template.startswith("train"),
        run=run or "${HETMP_RUN:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}",
    )


@dataclass(frozen=True)
class Submitted:
    """A job in the queue.

    Attributes:
        number: Slurm's job number.
        log: the file of its output.
        run: the folder of the run; None for a job that does not train.
    """

    number: int
    log: Path
    run: Path | None


def submit(template: str, job: Job, script: str) -> Submitted:
    """Give a job's *script*, made from *template*, to sbatch, to run in the present folder.

    Raises:
        HetmpError: sbatch is missing or refuses the job: its own message.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sbatch")
        path.write_text(script)
        answer = called("sbatch", "--parsable", str(path))
    number = int(answer.strip().splitlines()[-1].partition(";")[0])
    log = job.output.replace("%x", job.name).replace("%j", str(number))
    run = job.run or os.environ.get("HETMP_RUN") or f"runs/{job.name}-{number}"
    return Submitted(number, Path(log), Path(run) if template.startswith("train") else None)
