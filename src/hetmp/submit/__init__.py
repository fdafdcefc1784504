"""Slurm jobs: what they ask for, their scripts, submitting them and watching them."""

from hetmp.submit.follow import follow
from hetmp.submit.job import TEMPLATES, Component, Job, make_job, read_job
from hetmp.submit.render import render
from hetmp.submit.send import Submitted, submit

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
