"""A user's module -> its sliced form and back: ``slice_model`` and ``merge_model``."""

from hetmp.slicing.build import slice_model, sliced_parameters
from hetmp.slicing.merge import merge_model, merged_tensors
from hetmp.slicing.model import SlicedModel
from hetmp.slicing.owners import owners
from hetmp.slicing.table import Entry, Table, make_table, tensors_of
from hetmp.slicing.tuning import PLAIN, Tuning

__all__ = [
    "PLAIN",
    "Entry",
    "SlicedModel",
    "Table",
    "Tuning",
    "make_table",
    "merge_model",
    "merged_tensors",
    "owners",
    "slice_model",
    "sliced_parameters",
    "tensors_of",
]
