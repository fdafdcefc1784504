"""Trace a few steps: every operation and exchange of all ranks, on one clock."""

from hetmp.tools.trace.trace import Traced, trace

__all__ = ["Traced", "trace"]
