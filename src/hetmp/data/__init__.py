"""Data sets by name, and the same batches of them on every rank.

>>> from hetmp import data
>>> digits = data.load("digits")
>>> len(digits.train), len(digits.test), digits.input_shape
(1437, 360, (1, 8, 8))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hetmp.data.augmentation import Augmentation
    from hetmp.data.batching import batch_indices, batches, count_batches
    from hetmp.data.dataset import Dataset, Part, Split
    from hetmp.data.feed import Feed, Reading
    from hetmp.data.options import Options
    from hetmp.data.registry import load, names, options_of
    from hetmp.data.unlabelled import load_pictures

_HOMES = {
    "Augmentation": "augmentation",
    "Dataset": "dataset",
    "Feed": "feed",
    "Options": "options",
    "Part": "dataset",
    "Reading": "feed",
    "Split": "dataset",
    "batch_indices": "batching",
    "batches": "batching",
    "count_batches": "batching",
    "load": "registry",
    "load_pictures": "unlabelled",
    "names": "registry",
    "options_of": "registry",
}

__all__ = [
    "Augmentation",
    "Dataset",
    "Feed",
    "Options",
    "Part",
    "Reading",
    "Split",
    "batch_indices",
    "batches",
    "count_batches",
    "load",
    "load_pictures",
    "names",
    "options_of",
]


def __getattr__(name: str) -> Any:
    # The settings are looked at on login nodes, where torch is slow to come.
    if name in _HOMES:
        return getattr(import_module(f"hetmp.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hetmp.data' has no attribute {name!r}")
