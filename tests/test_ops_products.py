"""Products of activations and attention: equal to the unsliced module, on slices or in summands."""

import pytest
import torch

from cases.products import CASES, attention, heads
from helpers.comparison import pick_weights, seeded
from helpers.functional import Around, check, sliced
from hetmp import slice_model


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", CASES)
def test_function(name):
    """Under the default plan slices stay slices where they can, under any plan it is equal."""
    check(CASES[name], list(CASES).index(name))


@pytest.mark.mpi
def test_attention_that_drops():
    """Dropout inside attention is drawn alike on every rank, and not at all in evaluation."""
    case = sliced(lambda x: attention(heads(x), heads(x), heads(x), dropout_p=0.4))
    module = seeded(lambda: Around(case))
    model = slice_model(module, pick_weights(0), example_input=torch.empty(case.shape).double())
    x = torch.ones(case.shape, dtype=torch.float64)
    first, second = model(x), model(x)
    outputs = model.hetmp.group.allgather(first.detach().numpy())
    assert not torch.equal(first, second)
    assert all((output == outputs[0]).all() for output in outputs)
