"""Batches for all ranks, read ahead of the training; each image on one rank.

Every rank reads and decodes its share of every batch in threads beside the training. The shares
are joined by an Allgatherv that begins a step before the batch is needed. Where a rank needs only
some images of a batch, these are its share, and only labels are joined.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hetmp.cluster import Group
from hetmp.core.errors import HetmpError
from hetmp.data.augmentation import Augmentation
from hetmp.data.batching import batch_indices
from hetmp.data.dataset import Dataset, Indices, Part
from hetmp.data.joining import Joining, Needed, Share

NOTHING = Augmentation()


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        weights: how large a share of every batch each rank reads, relative to the others'.
        readers: threads that read on this rank.
        device: where the batches go.
        dtype: what the images become.
    """

    weights: Sequence[float]
    readers: int = 1
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32


class Feed:
    """The batches of one part of a data set: on every rank whole, or the images that it needs.

    Attributes:
        waited: seconds that this rank has waited for images so far.
    """

    def __init__(
        self,
        dataset: Dataset,
        part: Part,
        group: Group,
        reading: Reading,
        augmentation: Augmentation = NOTHING,
    ) -> None:
        """
        Args:
            part: of *dataset*.
            group: the ranks that read, and that all get the batches.
            augmentation: of the images of `shuffled`.
        """
        self._part, self._group, self._reading = part, group, reading
        self._augmentation = augmentation
        self._joining = Joining(part, group, reading.weights)
        self._normal: tuple[Tensor, Tensor] | None = None
        if not dataset.normalised:
            ones = (1,) * (len(dataset.input_shape) - 1)
            mean, std = (
                torch.tensor(figures, dtype=torch.float64).to(reading.dtype).view(1, -1, *ones)
                for figures in (dataset.mean, dataset.std)
            )
            self._normal = mean.to(reading.device), std.to(reading.device)
        self.waited = 0.0

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        drop_last: bool = False,
        needed: Needed | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of an epoch from batch *start* on, in random order. Collective.

        Images ``(b, c, *spatial)``, labels int64; see ``batch_indices`` for the order. Every rank
        takes the same batches, or closes the iterator after the same one.

        Args:
            batch_size: images of the whole batch, over all ranks.
            seed, epoch: what the order depends on.
            start: the first batch to yield, counted from 0.
            drop_last: leave out a last batch that is not full.
            needed: the images of a batch that each rank gets, of which only these are read there;
                None for all. Labels are always of the whole batch.

        Raises:
            HetmpError: on every rank: an image cannot be read.
        """
        count = len(self._part)
        order = batch_indices(count, batch_size, seed=seed, epoch=epoch, drop_last=drop_last)
        draws = self._augmentation.draws(seed, epoch, count) if self._augmentation else None
        return self._batches(order[start:], draws, needed)

    def in_order(
        self, batch_size: int, needed: Needed | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all images in the order of their numbers. Collective; as ``shuffled``."""
        count = len(self._part)
        order = batch_indices(count, batch_size, seed=0, epoch=0, shuffle=False)
        return self._batches(order, None, needed)

    def _batches(
        self, order: list[Indices], draws: npt.NDArray[np.uint64] | None, needed: Needed | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        pool = ThreadPoolExecutor(self._reading.readers, thread_name_prefix="hetmp-reader")
        try:
            yield from self._read_ahead(order, draws, needed, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(
        self,
        order: list[Indices],
        draws: npt.NDArray[np.uint64] | None,
        needed: Needed | None,
        pool: ThreadPoolExecutor,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if not order:
            return
        # One batch is being joined, one is ready to be, and every reader has one at hand.
        ahead = 2 + self._reading.readers
        waiting = deque(order)
        futures: deque[tuple[Indices, Future[Share]]] = deque()

        def read_on() -> None:
            while waiting and len(futures) < ahead:
                chosen = waiting.popleft()
                futures.append((chosen, pool.submit(partial(self._read, chosen, draws, needed))))

        def join() -> None:
            began = time.perf_counter()
            chosen, future = futures.popleft()
            self._joining.start(chosen, _outcome(future), needed)
            self.waited += time.perf_counter() - began
            read_on()

        read_on()
        join()
        for left in range(len(order) - 1, -1, -1):
            began = time.perf_counter()
            images, labels = self._joining.wait()
            self.waited += time.perf_counter() - began
            if left:
                join()
            batch = self._ready(images), torch.from_numpy(labels).to(self._reading.device)
            try:
                yield batch
            except GeneratorExit:
                self._joining.drop()
                raise

    def _read(
        self, chosen: Indices, draws: npt.NDArray[np.uint64] | None, needed: Needed | None
    ) -> Share:
        own = self._joining.own(chosen, needed)
        if not len(own):
            return Share(
                np.empty((0, *self._part.shape), self._part.dtype),
                np.empty((0, *self._part.label_shape), np.int64),
            )
        share = Share(*self._part.read(own))
        if draws is None:
            return share
        return Share(*self._augmentation.apply(share.images, share.labels, own, draws))

    def _ready(self, images: npt.NDArray[np.generic]) -> Tensor:
        """Return images as the network takes them: on the device, normalised."""
        x = torch.from_numpy(images).to(self._reading.device).to(self._reading.dtype)
        if self._normal is None:
            return x
        mean, std = self._normal
        return (x - mean) / std


def _outcome(future: "Future[Share]") -> Share | HetmpError:
    """Return what was read, or the error that all ranks shall raise."""
    try:
        return future.result()
    except HetmpError as error:
        return error
    except (OSError, MemoryError) as error:
        return HetmpError(f"reading the images failed: {type(error).__name__}: {error}")
