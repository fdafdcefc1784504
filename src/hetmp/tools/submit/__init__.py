"""Slurm jobs: their settings and scripts, submitting and following them."""

from hetmp.tools.submit.follow import follow
from hetmp.tools.submit.job import TEMPLATES, Component, Job, make_job, read_job
from hetmp.tools.submit.script import Submitted, render, submit

__all__ = [
    "TEMPLATES",
    "Component",
    "Job",
    "Submitted",
    "follow",
    "make_job",
    "read_job",
    "render",
    "submit",
]
