"""Functions and methods that move, cut and join axes: equal to the unsliced module."""

import pytest

from cases.shapes import CASES
from helpers.functional import check


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_function(name):
    """Under the default plan slices stay slices where they can, under any plan it is equal."""
    check(CASES[name], list(CASES).index(name))
