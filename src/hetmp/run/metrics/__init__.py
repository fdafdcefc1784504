"""What a run records: where the seconds of its steps went, and files of it in several formats."""

from hetmp.run.metrics.clock import KINDS, StepClock
from hetmp.run.metrics.files import Metrics, check_formats

__all__ = ["KINDS", "Metrics", "StepClock", "check_formats"]
