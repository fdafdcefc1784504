"""Tuples and lists of stand-ins, which know whether their number of items matters."""

from collections.abc import Iterator
from typing import Any, cast

from torch import fx

COUNTED = "counted"
"""In the meta of a node with several values: the module depends on their number."""


def count_items(structure: object) -> None:
    """Note that the module depends on the numbers of items in *structure*, where they are noted."""
    if isinstance(structure, ItemsTuple | ItemsList) and hasattr(structure, "node"):
        structure.node.meta[COUNTED] = True
    elif type(structure) in (tuple, list):
        for item in cast("list[object]", structure):
            count_items(item)
    elif type(structure) is dict:
        for item in cast("dict[str, object]", structure).values():
            count_items(item)


class ItemsTuple(tuple[Any, ...]):
    """A tuple with a stand-in for every item; ``node`` is that of the tuple.

    Whoever goes through all items depends on how many there are: ``COUNTED`` in the node's meta.
    """

    node: fx.Node

    def __iter__(self) -> Iterator[Any]:
        count_items(self)
        return super().__iter__()


class ItemsList(list[object]):
    """A list with a stand-in for every item; see ``ItemsTuple``."""

    node: fx.Node

    def __iter__(self) -> Iterator[Any]:
        count_items(self)
        return super().__iter__()


class ShapeProxy(ItemsTuple):
    """The result of ``x.shape``: a stand-in for every size."""

    def __add__(self, other: Any) -> "ShapeProxy":
        return ShapeProxy((*self, *other))

    def __getitem__(self, index: Any) -> Any:
        sizes = super().__getitem__(index)
        return ShapeProxy(sizes) if type(index) is slice else sizes

    def numel(self) -> object:
        """Return the number of elements."""
        total: object = 1
        for size in self:
            total = total * size
        return total
