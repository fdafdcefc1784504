"""Data sets by name, and the same batches of them on every rank.

>>> digits = load("digits")
>>> len(digits.train), len(digits.test), digits.input_shape
(1437, 360, (1, 8, 8))
"""

from hetmp.data.batches import batch_indices, batches, count_batches
from hetmp.data.dataset import Dataset, Split
from hetmp.data.registry import load, names

__all__ = ["Dataset", "Split", "batch_indices", "batches", "count_batches", "load", "names"]
