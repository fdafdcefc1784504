"""A job's script, from its template."""

import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hetmp.submit.job import Job

_FILES = {"train_hetero": "train"}
"""Templates that are another one with other defaults."""


def render(template: str, job: Job, env_file: str | Path | None = "jobs/env.sh") -> str:
    """The text of the script.

    Args:
        template: its name in ``TEMPLATES``.
        env_file: what the script reads first; nothing if None.
    """
    environment = Environment(
        loader=PackageLoader("hetmp.submit"),
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
