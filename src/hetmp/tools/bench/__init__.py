"""Compare the time of a training step with other ways to compute it: ``hetmp bench``.

Variants take turns, in a new order every turn, so that noise of the machine affects all of them,
and medians are compared.

| variant | what runs |
| --- | --- |
| sliced | the sliced model, as `hetmp train` runs it |
| sliced again | the same once more: the difference is noise |
| floor | the same slices, with barriers instead of exchanges |
| plain exchange | the same slices, with plain collectives on packed copies |
| one process, NCHW | the whole network on rank 0, with the cores of all ranks of its host |
| one process, channels_last | the same, with the channels of each pixel together in memory |
| filters, batch, batch:K, FILE | the sliced model in another cut: by schemes, or by a plan |
| data parallel | torch's DistributedDataParallel: the network whole on every rank, equal batches |
| data parallel, weighted | the same, every rank with a batch as large as the rank is fast |
"""

from hetmp.tools.bench.config import BenchConfig, split_names
from hetmp.tools.bench.measure import bench
from hetmp.tools.bench.progress import turn_view
from hetmp.tools.bench.record import append_result, check_appendable
from hetmp.tools.bench.result import BenchResult, rows, summary

__all__ = [
    "BenchConfig",
    "BenchResult",
    "append_result",
    "bench",
    "check_appendable",
    "rows",
    "split_names",
    "summary",
    "turn_view",
]
