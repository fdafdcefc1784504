"""Saved on some ranks, loaded on others: training goes on as if nothing had happened."""

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.saving import network, optimizer, ranks, shared, sliced, steps, uneven, world
from helpers.works import works
from hetmp.checkpoint.background import Saver
from hetmp.checkpoint.save_load import gather
from hetmp.cluster import Group

pytestmark = pytest.mark.mpi


@works("`hetmp.save`, `hetmp.load`")
@pytest.mark.parametrize("name", ["sgd", pytest.param("adamw", marks=pytest.mark.writer)])
def test_any_ranks_to_any_ranks(tmp_path, name):
    """Saved by the first n ranks and loaded by the last m, cut otherwise: the same losses."""
    folder, size = shared(tmp_path), world().size
    for n in range(1, size + 1):
        path = folder / f"{n}.h5"
        expected = None
        first = ranks(range(n))
        if first is not None:
            torch.manual_seed(7)
            model = sliced(first, uneven(n), {"0": "batch", "3": "inputs"} if n > 1 else None)
            opt = optimizer(name, model)
            steps(model, opt, 0, 3)
            hetmp.save(path, model, opt, {"n": n})
            expected = steps(model, opt, 3, 6)
        expected = world().bcast(expected)
        for m in range(1, size + 1):
            last = ranks(range(size - m, size))
            if last is None:
                continue
            torch.manual_seed(100 + m)
            other = sliced(last, uneven(m, turned=True), {"6": "whole" if m % 2 else "batch"})
            opt = optimizer(name, other)
            if m % 2:
                steps(other, opt, 20, 21)  # what the optimizer knew before is forgotten
            assert hetmp.load(path, other, opt) == {"n": n}
            found = steps(other, opt, 3, 6)
            np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.writer
def test_the_file_holds_the_unsliced_network(tmp_path):
    """Parameters, buffers and the optimizer's state are those of one process."""
    path = shared(tmp_path) / "a.h5"
    whole = network(dropout=0.0)
    reference = optimizer("adamw", whole)
    steps(whole, reference, 0, 3)
    model = hetmp.slice_model(network(dropout=0.0), uneven(world().size), world())
    opt = optimizer("adamw", model)
    steps(model, opt, 0, 3)
    hetmp.save(path, model, opt)
    with h5py.File(path) as file:
        buffers = {name for name, _ in whole.named_buffers()}
        for name, tensor in whole.state_dict().items():
            stored = file["buffers" if name in buffers else "model"][name]
            assert stored.shape == tuple(tensor.shape)
            np.testing.assert_allclose(stored[()], tensor.numpy(), rtol=1e-8, atol=1e-12)
        for name, parameter in whole.named_parameters():
            for key, value in reference.state[parameter].items():
                stored = file["optimizer"][name][key]
                assert stored.shape == tuple(value.shape)
                np.testing.assert_allclose(stored[()], value.numpy(), rtol=1e-8, atol=1e-11)
        assert set(file) == {"model", "buffers", "optimizer", "training", "plan", "meta"}


@pytest.mark.writer
def test_the_file_says_who_held_what(tmp_path):
    path = shared(tmp_path) / "a.h5"
    model = sliced(world(), uneven(world().size))
    hetmp.save(path, model)
    with h5py.File(path) as file:
        weight = file["model/0.weight"]
        counts = model.hetmp.plan.layers[0].counts
        held = {int(rank): int(stop - start) for rank, start, stop in weight.attrs["owners"]}
        assert weight.attrs["axis"] == 0
        assert held == {rank: count for rank, count in enumerate(counts) if count}
        assert file["meta"].attrs["ranks"] == world().size


@pytest.mark.writer
def test_what_is_saved_behind_the_training_is_what_was(tmp_path):
    """Steps that run meanwhile do not reach the file."""
    folder = shared(tmp_path)
    model = sliced(world(), uneven(world().size))
    opt = optimizer("adamw", model)
    steps(model, opt, 0, 2)
    group = Group(world())
    saver = Saver(group, behind=True)
    done = []
    contents = gather(model, opt, {"step": 2})
    Saver(group).save(folder / "now.h5", contents, lambda: done.append("now"))
    saver.save(folder / "behind.h5", contents, lambda: done.append("behind"))
    steps(model, opt, 2, 6)
    saver.wait()
    world().Barrier()
    assert done == (["now", "behind"] if world().rank == 0 else [])
    assert datasets(folder / "now.h5") == datasets(folder / "behind.h5")


def datasets(path):
    """The digest of every dataset."""
    found = {}

    def look(name, it):
        if "digest" in it.attrs:
            found[name] = it.attrs["digest"]

    with h5py.File(path) as file:
        file.visititems(look)
    assert found
    return found


@pytest.mark.writer
def test_an_error_behind_the_training_is_told_at_the_next_save(tmp_path):
    folder = shared(tmp_path)
    (tmp_path / "a folder.h5").mkdir()
    world().Barrier()
    model = sliced(world(), uneven(world().size))
    saver = Saver(Group(world()), behind=True)
    saver.save(folder / "a folder.h5", gather(model, None, {}), lambda: None)
    with pytest.raises(hetmp.HetmpError, match=r"a folder\.h5 could not be written"):
        saver.save(folder / "b.h5", gather(model, None, {}), lambda: None)


@pytest.mark.writer
def test_tied_weights_are_one_dataset(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(6, 6, 3, padding=1)
            self.two = nn.Conv2d(6, 6, 3, padding=1)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    path = shared(tmp_path) / "tied.h5"
    model = hetmp.slice_model(Tied().double(), uneven(world().size), world())
    hetmp.save(path, model)
    with h5py.File(path) as file:
        assert file["model/one.weight"] == file["model/two.weight"]
    with torch.no_grad():
        model.one.weight.zero_()
    hetmp.load(path, model)
    merged = hetmp.merge_model(model)
    assert merged["one.weight"].abs().sum() > 0
    assert torch.equal(merged["one.weight"], merged["two.weight"])


@pytest.mark.writer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_precision_comes_back_bit_by_bit(tmp_path, dtype):
    path = shared(tmp_path) / "a.h5"
    model = hetmp.slice_model(network().to(dtype), uneven(world().size), world())
    before = hetmp.merge_model(model)
    hetmp.save(path, model)
    other = hetmp.slice_model(network().to(dtype), uneven(world().size, turned=True), world())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(3)
    hetmp.load(path, other)
    after = hetmp.merge_model(other)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.writer
def test_a_tensor_of_many_chunks(tmp_path):
    """More than a block of 16 MiB, cut along its second axis too."""
    path = shared(tmp_path) / "big.h5"

    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 700, 1), nn.Conv2d(700, 900, 3, padding=1))

    module = build(0)
    size = world().size
    plan = hetmp.plan_from_weights(hetmp.read_graph(module), uneven(size))
    model = hetmp.slice_model(module, plan.with_layer("1", scheme="inputs"), world())
    hetmp.save(path, model)
    other = hetmp.slice_model(build(1), uneven(size, turned=True), world())
    hetmp.load(path, other)
    merged = hetmp.merge_model(other)
    for name, tensor in build(0).state_dict().items():
        assert torch.equal(merged[name], tensor)


def damaged(path, dataset):
    """Flip a bit of a dataset's numbers, where HDF5 keeps no checksum of its own."""
    if world().rank == 0:
        with h5py.File(path, "r+") as file:
            values = file[dataset][()]
            values.reshape(-1)[0] += 1
            file[dataset][()] = values
    world().Barrier()


def test_damage_is_refused_by_name_and_changes_nothing(tmp_path):
    path = shared(tmp_path) / "a.h5"
    model = sliced(world(), uneven(world().size))
    opt = optimizer("adamw", model)
    steps(model, opt, 0, 2)
    hetmp.save(path, model, opt)
    damaged(path, "optimizer/3.weight/exp_avg")
    steps(model, opt, 2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(hetmp.HetmpError, match=r"optimizer/3\.weight/exp_avg is damaged"):
        hetmp.load(path, model, opt)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_what_does_not_fit_is_refused(tmp_path):
    folder = shared(tmp_path)
    path = folder / "a.h5"
    model = sliced(world(), uneven(world().size))
    opt = optimizer("sgd", model)
    steps(model, opt, 0, 1)
    hetmp.save(path, model, opt)
    weights = uneven(world().size)

    def refused(module, words, make=None):
        other = hetmp.slice_model(module, weights, world())
        with pytest.raises(hetmp.HetmpError, match=words):
            hetmp.load(path, other, make(other) if make else None)

    refused(nn.Sequential(nn.Conv2d(3, 12, 3)).double(), r"0\.weight is 13×3×3×3 .* 12×3×3×3")
    refused(nn.Sequential(nn.Conv2d(3, 13, 3)), r"float64 in the checkpoint and float32 .*\.to\(")
    refused(
        nn.Sequential(nn.Identity(), nn.ReLU(), nn.Conv2d(3, 13, 3)).double(), "has no /model/2"
    )
    refused(nn.Sequential(nn.Conv2d(3, 13, 3)).double(), "has /model/.*, which the model does not")
    refused(network(), "state of SGD, the optimizer is AdamW", lambda m: optimizer("adamw", m))
    with pytest.raises(hetmp.HetmpError, match="there is no checkpoint"):
        hetmp.load(folder / "nothing.h5", model)
    with pytest.raises(hetmp.HetmpError, match=r"made by hetmp\.slice_model, got Sequential"):
        hetmp.save(path, network())
    hetmp.save(folder / "bare.h5", model)
    with pytest.raises(hetmp.HetmpError, match="no optimizer state"):
        hetmp.load(folder / "bare.h5", model, opt)


def test_an_optimizer_that_cannot_be_put_together_is_refused(tmp_path):
    model = sliced(world(), uneven(world().size))
    opt = optimizer("sgd", model)
    steps(model, opt, 0, 1)
    for parameter in model.parameters():
        opt.state[parameter]["rows"] = torch.zeros(2, 2, 2)
    with pytest.raises(hetmp.HetmpError, match=r"'rows' of .* cannot assemble it"):
        hetmp.save(shared(tmp_path) / "a.h5", model, opt)


@pytest.mark.writer
@pytest.mark.mpi(min_size=2)
def test_ranks_that_want_to_save_different_things_are_refused(tmp_path):
    model = sliced(world(), uneven(world().size))
    with pytest.raises(hetmp.HetmpError, match="the ranks want to save different things"):
        hetmp.save(shared(tmp_path) / "a.h5", model, extra={f"of {world().rank}": 1})


@pytest.mark.writer
def test_a_folder_that_cannot_be_written_leaves_what_was(tmp_path):
    folder = shared(tmp_path)
    model = sliced(world(), uneven(world().size))
    path = folder / "a.h5"
    hetmp.save(path, model)
    before = path.read_bytes()
    world().Barrier()
    with pytest.raises(hetmp.HetmpError, match="extra/bad: a checkpoint holds numbers"):
        hetmp.save(path, model, extra={"bad": object()})
    blocker = folder / "file"
    if world().rank == 0:
        blocker.write_text("")
    world().Barrier()
    with pytest.raises(hetmp.HetmpError, match="file"):
        hetmp.save(blocker / "a.h5", model)
    assert path.read_bytes() == before
    world().Barrier()
    assert sorted(p.name for p in folder.iterdir()) == ["a.h5", "file"]
