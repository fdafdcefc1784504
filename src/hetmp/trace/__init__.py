"""A few steps under the glass: every operation and exchange of all ranks, on one clock."""

from hetmp.trace.run import Traced, trace

__all__ = ["Traced", "trace"]
