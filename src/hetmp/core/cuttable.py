"""The operations on an axis that ranks share, whether or not its partition is chosen yet."""

from collections.abc import Sequence
from typing import Protocol

from typing_extensions import Self


class Cuttable(Protocol):
    """An axis that several ranks share.

    A ``Layout`` knows how many indices each rank holds; an ``open_axis.Axis`` does not yet, and
    learns from the same calls what must be cut alike. None means that it cannot be done without
    an exchange.
    """

    @property
    def total(self) -> int:
        """The length of the axis in indices."""
        ...

    @property
    def length(self) -> int | None:
        """The same as far as it is known before a batch arrives: None for the axis of the batch."""
        ...

    def scaled(self, block: int) -> Self:
        """Return the axis after each index became *block* neighbouring ones."""
        ...

    def grouped(self, size: int) -> Self | None:
        """Return the axis in units of *size* neighbouring indices; None where a share cuts one."""
        ...

    def cut(self, start: int, stop: int) -> Self | None:
        """Return the indices from *start* to *stop* alone."""
        ...

    def folded(self, parts: int) -> Self | None:
        """Return one of *parts* equal parts; None where they are not cut alike."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Self], /) -> Self | None:
        """Join axes, one after the other, as concatenation does; None if that is impossible."""
        ...

    def like(self, total: int) -> Self:
        """Return an axis of *total* indices, shared in the same proportions."""
        ...

    def tie(self, other: Self) -> bool:
        """Return whether both are cut alike; an axis that is not cut yet is made so."""
        ...
