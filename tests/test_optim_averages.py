"""The moving average of the parameters, slice by slice, beside torch's of the unsliced network."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hetmp
from helpers.comparison import sgd
from helpers.optimizing import KINDS, MIXED, Pair
from helpers.works import works
from hetmp.core.errors import HetmpError
from hetmp.exchange import share_of
from hetmp.optim import Averages

pytestmark = pytest.mark.mpi


def averaged(pair, decay, steps=4):
    """hetmp's averages and torch's after some steps."""
    mine = Averages(pair.model, decay)
    torchs = AveragedModel(pair.reference, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizers = [sgd(pair.model.parameters()), sgd(pair.reference.parameters())]
    for step in range(steps):
        pair.backward(step)
        for optimizer in optimizers:
            optimizer.step()
        mine.update()
        torchs.update_parameters(pair.reference)
    return mine, torchs.module


@works("`hetmp.optim.Averages`")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_averages(decay, kind):
    pair = Pair(kind, MIXED, frozen=["3.bias"])
    mine, torchs = averaged(pair, decay)
    assert mine.updates == 4
    assert list(mine.tensors) == [name for name, _ in pair.model.named_parameters()]
    for name, expected in torchs.named_parameters():
        own = share_of(expected.detach(), pair.model.hetmp.table[name].state, pair.group.rank)
        pair.differences.compare(name, mine.tensors[name], own)
    trained = hetmp.merge_model(pair.model)
    with mine.in_place():
        swapped = hetmp.merge_model(pair.model)
    for name, expected in torchs.named_parameters():
        pair.differences.compare(f"{name} in place", swapped[name], expected)
    if decay == 0.7:
        assert not torch.equal(swapped["3.weight"], trained["3.weight"])
    pair.finish()  # the parameters are back, and the buffers are the model's own


def test_training_goes_on_after_looking_at_the_averages():
    """The optimizer's parameters are those of the model, before and after."""
    pair = Pair("one zero")
    mine, _ = averaged(pair, 0.5)
    with pytest.raises(ZeroDivisionError), mine.in_place():
        raise ZeroDivisionError
    optimizers = [sgd(pair.model.parameters()), sgd(pair.reference.parameters())]
    for step in range(2):
        with mine.in_place():
            pass
        pair.backward(step)
        for optimizer in optimizers:
            optimizer.step()
    pair.finish()


def test_averages_are_taken_up_again():
    """From tensors and updates, as a checkpoint keeps them."""
    pair = Pair("1:2:3")
    first, _ = averaged(pair, 0.6)
    again = Averages(pair.model, 0.6)
    for name, tensor in first.tensors.items():
        again.tensors[name].copy_(tensor)
    again.updates = first.updates
    for averages in (first, again):
        averages.update()
    fresh = Averages(pair.model, 0.6)
    fresh.update()
    assert all(torch.equal(again.tensors[name], first.tensors[name]) for name in first.tensors)
    sums = [
        float(pair.group.allgather(tensors["3.weight"].sum().numpy()).sum())
        for tensors in (again.tensors, fresh.tensors)
    ]
    assert sums[0] != sums[1]  # where it had not been taken up, the first update would copy


def test_what_averages_refuse():
    pair = Pair("equal")
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(HetmpError, match=r"the decay of averages is in \[0, 1\], got"):
            Averages(pair.model, decay)
    averages = Averages(pair.model, 0.9)
    with averages.in_place():
        with pytest.raises(HetmpError, match="in the model now and cannot be updated: leave"):
            averages.update()
        with (
            pytest.raises(HetmpError, match="in the model now and cannot be put in place"),
            averages.in_place(),
        ):
            pass
    averages.update()
