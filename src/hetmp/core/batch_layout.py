"""How the images of a batch are shared over the ranks: arithmetic only, no MPI, no torch.

A batch is cut by weights. How many images each rank has is known when a batch arrives, and another
batch may be longer: ``BatchLayout.of`` tells it for so many images, and within ``arrived`` the
layout answers for the batch that is under way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from hetmp.core.partition import Layout, apportion

_ARRIVED: ContextVar[int] = ContextVar("images of the batch under way")


@dataclass(frozen=True)
class BatchLayout:
    """The axis of a batch, shared in proportion to weights.

    Attributes:
        weights: the ranks' shares; only ratios matter.
        block: how many neighbouring indices of the axis belong to each image.

    >>> BatchLayout((Fraction(3), Fraction(1))).of(6).counts
    (5, 1)
    """

    weights: tuple[Fraction, ...]
    block: int = 1

    def of(self, images: int) -> Layout:
        """Return the layout of the axis for a batch of so many *images*."""
        return _layout(self.weights, images, self.block)

    @property
    def now(self) -> Layout:
        """The layout for the batch that is under way: see ``arrived``."""
        return self.of(images_now())

    @property
    def ranks(self) -> int:
        """The number of ranks that share the axis."""
        return len(self.weights)

    @property
    def length(self) -> None:
        """None: the length of the axis is not known before a batch arrives."""
        return None

    # --- of the batch under way

    @property
    def total(self) -> int:
        """The length of the axis."""
        return self.now.total

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of indices of each rank."""
        return self.now.counts

    def slices(self, rank: int) -> tuple[slice, ...]:
        """Return the indices that *rank* holds."""
        return self.now.slices(rank)

    # --- as in ``Layout``

    def scaled(self, block: int) -> "BatchLayout":
        """Return the layout after each index became *block* neighbouring ones."""
        return BatchLayout(self.weights, self.block * block)

    def grouped(self, size: int) -> "BatchLayout | None":
        """Return the layout in units of *size* neighbouring indices; None if images are parted."""
        block, rest = divmod(self.block, size)
        return None if rest else BatchLayout(self.weights, block)

    def cut(self, start: int, stop: int) -> None:
        """Return None: which ranks hold the images from *start* to *stop* is not known before."""
        return None

    def folded(self, parts: int) -> None:
        """Return None: that *parts* of a batch are cut alike is not known before."""
        return None

    @classmethod
    def joined(cls, layouts: Sequence["BatchLayout"]) -> "BatchLayout | None":
        """Return a single layout as it is, None for more: batches in a row are not one batch."""
        return layouts[0] if len(layouts) == 1 else None

    def like(self, total: int) -> Layout:
        """Return the layout of an axis of *total* indices, shared in the same proportions."""
        return Layout.of(apportion(total, self.weights))

    def tie(self, other: object) -> bool:
        """Return whether both axes are cut alike."""
        return self == other

    def __str__(self) -> str:
        weights = [f"{float(weight):g}" for weight in self.weights]
        if len(weights) > 8:
            weights[4:-2] = ["..."]
        return ":".join(weights)


@lru_cache(maxsize=1024)
def _layout(weights: tuple[Fraction, ...], images: int, block: int) -> Layout:
    return Layout.of(apportion(images, weights), block)


def images_now() -> int:
    """Return the number of images of the batch that is under way."""
    return _ARRIVED.get()


@contextmanager
def arrived(images: int) -> Iterator[None]:
    """Let layouts of the batch answer for a batch of so many *images*, in this thread."""
    token = _ARRIVED.set(images)
    try:
        yield
    finally:
        _ARRIVED.reset(token)
