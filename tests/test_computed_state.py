"""Parameters of computed weights in checkpoints, in global norms and in memory."""

import pytest
import torch

import hetmp
from cases.computed import CASES, Network
from helpers.comparison import batch, compare_training, pick_weights, rank_loss, seeded
from helpers.optimizing import Pair, train
from helpers.saving import ranks, shared, uneven, world
from hetmp.optim import LARS, clip_grad_norm_
from test_optim_global import lars

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")]

NAMES = ("batch norm with a gain", "weight norm", "weight norm of old", "inside")


def sliced(name, comm, weights, seed=0):
    return hetmp.slice_model(seeded(lambda: Network(CASES[name]()), seed), weights, comm)


@pytest.mark.parametrize("name", NAMES)
def test_what_all_ranks_save_two_load(tmp_path, name):
    path = shared(tmp_path) / "a.h5"
    model = sliced(name, world(), uneven(world().size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rank_loss(model(batch((3, 3, 7, 6))), 0).backward()
    optimizer.step()
    hetmp.save(path, model, optimizer)
    expected = hetmp.merge_model(model)
    few = ranks(range(min(2, world().size)))
    if few is not None:
        other = sliced(name, few, uneven(few.size, turned=True), seed=1)
        hetmp.load(path, other, torch.optim.AdamW(other.parameters(), lr=0.01))
        for key, tensor in hetmp.merge_model(other).items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0)
    module = Network(CASES[name]()).double()
    module.load_state_dict(expected)
    x = batch((3, 3, 7, 6))
    torch.testing.assert_close(module(x), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_norms_of_whole_tensors(name):
    """Of the parameters as they are, not of the weights that are computed from them."""
    options = {"lr": 0.1, "weight_decay": 0.01, "trust": 0.3}
    pair = Pair("one zero", None, build=lambda: Network(CASES[name]()))
    train(pair, LARS(pair.model, **options), lars(pair.reference, **options))
    pair.backward(5)
    norm = clip_grad_norm_(pair.model, 0.1)
    expected = torch.nn.utils.clip_grad_norm_(pair.reference.parameters(), 0.1)
    torch.testing.assert_close(norm, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_on_the_meta_device(name):
    with torch.device("meta"):
        module = Network(CASES[name]())

    def init(name, shape, generator):
        return torch.rand(shape, generator=generator)

    model = hetmp.slice_model(module, pick_weights(1), init=init, device="cpu")
    module = Network(CASES[name]())
    module.load_state_dict(hetmp.merge_model(model))
    compare_training(module.double(), pick_weights(2), (3, 3, 7, 6))
