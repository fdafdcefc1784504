"""The pictures of a report: each from a run's figures, with these in words and as a table, too.

A function of this package gives a `Picture`, or a `Missing` that says why there is none.
"""

from hetmp.tools.report.pictures.curves import accuracy, loss, throughput
from hetmp.tools.report.pictures.exchanges import exchanges
from hetmp.tools.report.pictures.layers import layers
from hetmp.tools.report.pictures.memory import memory
from hetmp.tools.report.pictures.partition import partition
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.pictures.predicted import predicted
from hetmp.tools.report.pictures.ranks import ranks
from hetmp.tools.report.pictures.runs import runs

__all__ = [
    "Missing",
    "Picture",
    "accuracy",
    "exchanges",
    "layers",
    "loss",
    "memory",
    "partition",
    "predicted",
    "ranks",
    "runs",
    "throughput",
]
