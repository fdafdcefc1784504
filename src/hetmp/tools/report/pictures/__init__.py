"""The pictures of a report, each with its figures in words and as a table.

A function of this package returns a `Picture`, or a `Missing` with the reason why there is none.
"""

from hetmp.tools.report.pictures.curves import accuracy, loss, throughput
from hetmp.tools.report.pictures.exchanges import exchanges
from hetmp.tools.report.pictures.layers import layers
from hetmp.tools.report.pictures.memory import memory
from hetmp.tools.report.pictures.partition import partition
from hetmp.tools.report.pictures.picture import Missing, Picture
from hetmp.tools.report.pictures.predicted import predicted
from hetmp.tools.report.pictures.prediction import prediction
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
    "prediction",
    "ranks",
    "runs",
    "throughput",
]
