"""What keeps a sliced model: never a pickle, which would hold one rank's slices."""

import copy
import functools
import io
import multiprocessing
import pickle

import pytest
import torch
from torch import nn

import hetmp
from helpers.comparison import WEIGHTS, batch, seeded, world_size
from helpers.works import works
from hetmp.slicing.torch_guard import guard_torch

pytestmark = pytest.mark.mpi

REFUSED = r"cannot be pickled .*: hetmp\.save\(path, model\) .*\(hetmp\.merge_model\(model\)"


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 3))


def sliced() -> hetmp.SlicedModel:
    return hetmp.slice_model(seeded(small), WEIGHTS["one zero"](world_size()))


class Trainer:
    def __init__(self, model) -> None:
        self.model = model


class Lean(Trainer):
    """An object whose pickle leaves the model out."""

    def __getstate__(self):
        return {"step": 3}


HOLDERS = {
    "itself": lambda model: model,
    "a dict": lambda model: {"epoch": 3, "model": model},
    "a tuple in a list": lambda model: [(1, model)],
    "a wrapper": lambda model: torch.optim.swa_utils.AveragedModel(model),
    "a container": lambda model: nn.ModuleDict({"net": model}),
    "a plain object": Trainer,
    "a plain object's dict": lambda model: Trainer({"model": model}),
    "a method": lambda model: model.state_dict,
}


@works("pickle, `torch.save(model)`")
@pytest.mark.parametrize("holder", HOLDERS)
def test_torch_save_refuses_before_a_file_is_opened(tmp_path, holder):
    held = HOLDERS[holder](sliced())
    there, new = tmp_path / "there.pt", tmp_path / "new.pt"
    there.write_bytes(b"of yesterday")
    for path in (there, new):
        with pytest.raises(hetmp.HetmpError, match=REFUSED):
            torch.save(held, path)
    with pytest.raises(hetmp.HetmpError, match=REFUSED):
        torch.save(obj=held, f=new)
    assert there.read_bytes() == b"of yesterday"
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]


@works("pickle, `torch.save(model)`")
def test_a_pickle_and_a_spawned_process_are_refused():
    model = sliced()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(hetmp.HetmpError, match=REFUSED):
            pickle.dumps({"model": model}, protocol)
    process = multiprocessing.get_context("spawn").Process(target=print, args=(model,))
    with pytest.raises(hetmp.HetmpError, match=REFUSED):
        process.start()


def test_what_holds_no_sliced_model_is_saved_as_before():
    """States, optimizers, and objects that leave the model out; what is itself in itself."""
    model = sliced()
    optimizer = torch.optim.Adam(model.parameters())
    model(batch((2, 3, 6, 6))).sum().backward()
    optimizer.step()
    around: dict = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    around["numbers"] = [around["model"]["0.bias"], 3, None, {"a"}]
    for kept in (around, optimizer, Lean(model), seeded(small), Trainer(seeded(small))):
        file = io.BytesIO()
        torch.save(kept, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert type(again) is type(kept)
        if kept is around:
            for name, tensor in model.state_dict().items():
                assert torch.equal(again["model"][name], tensor)
    around["itself"] = around
    torch.save(around, io.BytesIO())


def test_torch_save_is_wrapped_once():
    sliced()
    before = torch.save
    sliced()
    guard_torch()
    assert torch.save is before
    assert torch.save.__name__ == "save" and torch.save.__doc__ == before.__wrapped__.__doc__
    assert not hasattr(before.__wrapped__, "__wrapped__")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_in_memory_still_work(duplicate):
    model = sliced()
    again = duplicate(model)
    assert type(again) is hetmp.SlicedModel
    assert again.hetmp.group is model.hetmp.group
    shared = [a is b for a, b in zip(again.parameters(), model.parameters(), strict=True)]
    assert shared == [duplicate is copy.copy] * len(shared)
    x = batch((2, 3, 6, 6))
    assert torch.equal(again.eval()(x), model.eval()(x))
    with pytest.raises(hetmp.HetmpError, match=REFUSED):
        pickle.dumps(functools.partial(again))
