"""The pictures of a report: each from a run's figures, with these in words and as a table, too.

A function of this package gives a `Picture`, or a `Missing` that says why there is none.
"""

from hetmp.report.pictures.curves import accuracy, loss, throughput
from hetmp.report.pictures.exchanges import exchanges
from hetmp.report.pictures.layers import layers
from hetmp.report.pictures.memory import memory
from hetmp.report.pictures.partition import partition
from hetmp.report.pictures.picture import Missing, Picture
from hetmp.report.pictures.predicted import predicted
from hetmp.report.pictures.ranks import ranks
from hetmp.report.pictures.runs import runs

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
