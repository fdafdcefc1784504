"""Data parallel training by PyTorch itself, in the same MPI processes, for comparison.

Every rank has the whole network and a part of the batch, and DistributedDataParallel averages the
gradients over gloo. Batch norm takes its statistics from each rank's own part there, so with such
layers it trains another network than the sliced model does. Its layers run in channels_last.
"""

import copy
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hetmp.cluster import Group, local_sharing
from hetmp.cluster.slowdown import Slowdown
from hetmp.core.errors import HetmpError


@contextmanager
def process_group(group: Group) -> Iterator[None]:
    """Make torch's process group over the ranks of *group* inside the context. Collective.

    Raises:
        HetmpError: on every rank, if torch has no gloo or a process group exists already.
    """
    _, here = local_sharing(group, "this host")
    with group.together():
        if not (dist.is_available() and dist.is_gloo_available()):
            raise HetmpError("this PyTorch has no gloo: run the bench without data parallel")
        if dist.is_initialized():
            raise HetmpError(
                "torch.distributed already has a process group: destroy it before the bench, or "
                "run the bench without data parallel"
            )
        tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
        host, port = "127.0.0.1" if here == group.size else socket.gethostname(), 0
        if group.is_root:
            store = tcp_store(host, 0, is_master=True, wait_for_workers=False)
            port = store.port
    host, _, port_text = group.broadcast_text(f"{host} {port}").partition(" ")
    if not group.is_root:
        store = tcp_store(host, int(port_text), is_master=False)
    dist.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size)
    try:
        yield
    finally:
        # A gloo thread may still want the interpreter, to drop the Python part of a reduction that
        # has ended; destroying joins that thread without letting go of the interpreter.
        time.sleep(0.2)
        dist.destroy_process_group()


def data_parallel(
    group: Group, module: nn.Module, counts: Sequence[int], slowdown: Slowdown | None
) -> tuple[nn.Module, slice, float]:
    """Copy *module* in channels_last, with gradients averaged over the ranks. Collective.

    Call it inside a ``process_group``.

    Args:
        group: the ranks of the bench.
        module: the whole network.
        counts: number of images of each rank.
        slowdown: of this rank, if ranks are slowed: it sleeps before gradients are reduced.

    Returns:
        The model, this rank's part of the batch, and the factor of its mean loss that makes the
        average of all ranks' gradients that of the whole batch.
    """
    whole: Any = copy.deepcopy(module)
    model = DistributedDataParallel(whole.to(memory_format=torch.channels_last))
    if slowdown is not None:
        model.register_comm_hook(None, _paced(slowdown))
    begin = sum(counts[: group.rank])
    mine = counts[group.rank]
    return model, slice(begin, begin + mine), mine * group.size / sum(counts)


def _paced(slowdown: Slowdown) -> Any:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    def reduce(
        state: Any,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        slowdown.worked()
        future = allreduce_hook(state, bucket)
        slowdown.resume()
        return future

    return reduce
