"""The images of a batch that this rank needs, for a feed and for the model that takes them."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from hetmp.data.dataset import Indices
from hetmp.data.joining import Needed
from hetmp.slicing import Rows, SlicedModel
from hetmp.slicing.rows import Input


class OwnImages:
    """The images that each rank needs of a batch, whose parts a model takes one after the other.

    Asks a model what it needs in the mode that it is in when this is made.

    Args:
        model: that takes the images.
        parts: how many parts a batch is taken in; fewer where it has fewer images.
    """

    def __init__(self, model: SlicedModel, parts: int = 1) -> None:
        self._group, self._need, self._parts = model.hetmp.group, model.hetmp.need, parts

    @property
    def needed(self) -> Needed | None:
        """Which positions of a batch each rank needs, for ``Feed``; None where all need all."""
        return None if self._need.layout is None else self._positions

    def given(self, images: Tensor, labels: Tensor) -> Input:
        """Return what a feed with ``needed`` gave as what it is: a whole batch, or rows of one."""
        return images if self._need.layout is None else Rows(images, len(labels))

    def split(self, images: Input, labels: Tensor) -> Iterator[tuple[Input, Tensor]]:
        """Yield the parts of a batch, with their labels.

        Args:
            images: (n, c, *spatial), or the rows that this rank needs of the parts, in order.
            labels: (n,) or (n, *spatial), whole.
        """
        sizes = self._sizes(len(labels))
        if not isinstance(images, Rows):
            yield from zip(images.split(sizes), labels.split(sizes), strict=True)
            return
        rows = [self._need.rows(size, self._group.rank) for size in sizes]
        own = images.mine.split([each.stop - each.start for each in rows])
        for some, their in zip(own, labels.split(sizes), strict=True):
            yield Rows(some, len(their)), their

    def _sizes(self, images: int) -> list[int]:
        """Return the number of images in each part."""
        size = -(-images // self._parts)
        full, rest = divmod(images, size)
        return [size] * full + [rest] * bool(rest)

    def _positions(self, images: int) -> Sequence[Indices]:
        """Return each rank's positions in a batch of so many images."""
        places: list[list[Indices]] = [[] for _ in range(self._group.size)]
        start = 0
        for size in self._sizes(images):
            for rank, own in enumerate(places):
                rows = self._need.rows(size, rank)
                own.append(np.arange(start + rows.start, start + rows.stop))
            start += size
        return [np.concatenate(own) for own in places]
