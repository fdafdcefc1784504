"""A user's module -> its sliced form and back: ``slice_model`` and ``merge_model``."""

from hetmp.slicing.build import slice_model
from hetmp.slicing.merge import merge_model, merged_tensors
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.table import Entry, Table, make_table

__all__ = [
    "Entry",
    "SlicedModel",
    "Table",
    "make_table",
    "merge_model",
    "merged_tensors",
    "slice_model",
]
