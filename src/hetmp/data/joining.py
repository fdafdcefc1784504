"""Joins batches of which every rank has read a share.

On the wire a rank's share is a byte that says whether it could be read, then its images, then
its labels, each as they lie in memory: ranks of one job are of one byte order. Where a rank keeps
the images that it read, only the labels travel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hetmp.cluster import AgreedError, Group
from hetmp.core.errors import HetmpError
from hetmp.core.partition import apportion
from hetmp.data.dataset import Indices, Part

READ, FAILED = 0, 1

Needed = Callable[[int], Sequence[Indices]]
"""Says which positions of a batch of so many images each rank needs, in rank order."""


@dataclass(frozen=True)
class Share:
    """Images (k, c, *spatial) and labels (k, ...) of the part of a batch that one rank read."""

    images: npt.NDArray[np.generic]
    labels: npt.NDArray[np.int64]


class Joining:
    """The batches of a part, joined one after the other: ``start``, then ``wait``.

    Args:
        weights: how large a share of every batch each rank reads, relative to the others'; equal
            shares where all are 0.
    """

    def __init__(self, part: Part, group: Group, weights: Sequence[float]) -> None:
        self._part, self._group = part, group
        self._weights = tuple(weights) if any(weights) else (1.0,) * group.size
        self._image_bytes = int(np.prod(part.shape, dtype=np.int64)) * part.dtype.itemsize
        self._label_bytes = int(np.prod(part.label_shape, dtype=np.int64)) * 8
        self._failure: HetmpError | None = None
        self._share: Share | None = None
        self._places: Sequence[Indices] = ()
        self._keeps = False
        self._request: Any = None
        self._arrived = self._sent = np.empty(0, dtype=np.uint8)

    def own(self, chosen: Indices, needed: Needed | None) -> Indices:
        """Return the images of a batch that this rank reads; *needed* is as in ``start``."""
        if self._alone(needed):
            return chosen
        return chosen[self._shared(chosen, needed)[self._group.rank]]

    def start(self, chosen: Indices, outcome: Share | HetmpError, needed: Needed | None) -> None:
        """Begin to join the batch *chosen*, whose `own` images this rank has read. Collective.

        Args:
            needed: the images that each rank reads and keeps, and of which only the labels are
                joined; None where every rank needs all images.
        """
        self._failure = outcome if isinstance(outcome, HetmpError) else None
        self._share = None if isinstance(outcome, HetmpError) else outcome
        self._places = () if self._alone(needed) else self._shared(chosen, needed)
        self._keeps = needed is not None
        if not self._places:
            return
        counts = [self._size(len(places)) for places in self._places]
        self._sent = np.empty(counts[self._group.rank], dtype=np.uint8)
        self._sent[0] = READ if self._share is not None else FAILED
        if self._share is not None:
            images, labels = self._share.images, self._share.labels
            split = 1 + len(images) * self._sent_bytes
            if not self._keeps:
                self._sent[1:split] = _bytes(images.astype(self._part.dtype, copy=False))
            self._sent[split:] = _bytes(labels.astype(np.int64, copy=False))
        self._arrived = np.empty(sum(counts), dtype=np.uint8)
        self._request = self._group.start_allgather(self._sent, self._arrived, counts)

    def wait(self) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        """Return images and labels of the batch that was begun, in its order. Collective.

        The images are all of the batch, or those that this rank needs; the labels are all.

        Raises:
            HetmpError: on every rank, if a rank could not read its share.
        """
        if not self._places:
            if self._failure is not None and self._group.size == 1:
                raise AgreedError(str(self._failure)) from self._failure
            if self._failure is not None:
                raise self._failure
            assert self._share is not None
            return self._share.images, self._share.labels
        self._request.wait()
        self._request = None
        starts = np.cumsum([0, *(self._size(len(own)) for own in self._places)])
        if any(self._arrived[start] == FAILED for start in starts[:-1]):
            with self._group.together():
                if self._failure is not None:
                    raise self._failure
        assert self._share is not None
        part, count = self._part, sum(map(len, self._places))
        images = np.empty((0 if self._keeps else count, *part.shape), dtype=part.dtype)
        labels = np.empty((count, *part.label_shape), dtype=np.int64)
        for start, stop, own in zip(starts[:-1], starts[1:], self._places, strict=True):
            split = start + 1 + len(own) * self._sent_bytes
            if not self._keeps:
                pixels = self._arrived[start + 1 : split].view(part.dtype)
                images[own] = pixels.reshape(-1, *part.shape)
            labels[own] = self._arrived[split:stop].view(np.int64).reshape(-1, *part.label_shape)
        return self._share.images if self._keeps else images, labels

    def drop(self) -> None:
        """Drop the batch that was begun. Collective."""
        if self._request is not None:
            self._request.wait()
            self._request = None

    def _alone(self, needed: Needed | None) -> bool:
        """Return whether this rank reads all images and labels of a batch itself."""
        return self._group.size == 1 or (needed is None and self._part.everywhere)

    def _shared(self, chosen: Indices, needed: Needed | None) -> Sequence[Indices]:
        """Return each rank's positions in the batch; if any will do, neighbours in the file."""
        if needed is not None:
            return needed(len(chosen))
        order = np.argsort(chosen, kind="stable")
        ends = np.cumsum(apportion(len(chosen), self._weights).counts)
        return np.split(order, ends[:-1])

    @property
    def _sent_bytes(self) -> int:
        """How many bytes of an image travel."""
        return 0 if self._keeps else self._image_bytes

    def _size(self, images: int) -> int:
        return 1 + images * (self._sent_bytes + self._label_bytes)


def _bytes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
