"""Data sets by name, and the same batches of them on every rank.

>>> digits = load("digits")
>>> len(digits.train), len(digits.test), digits.input_shape
(1437, 360, (1, 8, 8))
"""

from hetmp.data.augmentation import Augmentation
from hetmp.data.batches import batch_indices, batches, count_batches
from hetmp.data.dataset import Dataset, Part, Split
from hetmp.data.feed import Feed, Reading
from hetmp.data.options import Options
from hetmp.data.registry import load, names
from hetmp.data.unlabelled import load_pictures

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
]
