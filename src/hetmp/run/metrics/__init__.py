"""A run's metrics: the seconds of its steps by kind, and files in several formats."""

from hetmp.run.metrics.clock import KINDS, StepClock
from hetmp.run.metrics.files import Metrics, check_formats

__all__ = ["KINDS", "Metrics", "StepClock", "check_formats"]
