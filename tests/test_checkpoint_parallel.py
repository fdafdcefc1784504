"""Parallel HDF5 and the streamed writer give one and the same file; needs h5py built with MPI."""

import os
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.saving import optimizer, shared, sliced, steps, uneven, world
from hetmp.checkpoint.writers import has_parallel_hdf5

pytestmark = [pytest.mark.mpi, pytest.mark.writer]

needs_parallel = pytest.mark.skipif(
    not has_parallel_hdf5(), reason="h5py without MPI: scripts/parallel-hdf5.sh builds one"
)


def test_the_build_that_was_asked_for_is_the_one_that_runs():
    assert has_parallel_hdf5() == (os.environ.get("HETMP_PARALLEL_HDF5") == "1")


@pytest.mark.skipif(has_parallel_hdf5(), reason="this h5py has MPI")
def test_the_parallel_writer_says_what_it_lacks(tmp_path):
    model = sliced(world(), uneven(world().size))
    with pytest.raises(hetmp.HetmpError, match="h5py was built without MPI"):
        hetmp.save(shared(tmp_path) / "a.h5", model, writer="parallel")


def contents(path):
    """Every object with its attributes, without /meta."""
    found = {}

    def look(name, it):
        if name != "meta":
            attributes = {key: np.asarray(value).tolist() for key, value in it.attrs.items()}
            numbers = it[()].tobytes() if isinstance(it, h5py.Dataset) and it.shape else None
            told = (it.shape, it.dtype.str, it.chunks) if isinstance(it, h5py.Dataset) else None
            found[name] = (attributes, numbers, told)

    with h5py.File(path) as file:
        file.visititems(look)
    return found


@needs_parallel
def test_both_writers_give_the_same_file(tmp_path):
    folder = shared(tmp_path)
    model = sliced(world(), uneven(world().size), {"3": "inputs"} if world().size > 1 else None)
    opt = optimizer("adamw", model)
    steps(model, opt, 0, 2)
    extra = {"note": "x", "table": np.arange(6).reshape(2, 3), "in": {"a": 1.5, "no": np.zeros(0)}}
    for writer in ("streamed", "parallel"):
        hetmp.save(folder / f"{writer}.h5", model, opt, extra, writer=writer)
    assert contents(folder / "streamed.h5") == contents(folder / "parallel.h5")
    with h5py.File(folder / "parallel.h5") as file:
        assert file["meta"].attrs["writer"].decode() == "parallel"
    if world().rank == 0 and shutil.which("h5diff"):
        done = subprocess.run(
            ["h5diff", "--exclude-path", "/meta", folder / "streamed.h5", folder / "parallel.h5"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        # It says that a dataset without numbers cannot be compared: that is no difference.
        assert done.returncode == 0 and "found" not in done.stdout, done.stdout + done.stderr
    other = sliced(world(), uneven(world().size, turned=True))
    assert hetmp.load(folder / "parallel.h5", other)["note"] == "x"


@needs_parallel
def test_ranks_with_nothing_take_part(tmp_path):
    """A tensor of several blocks, cut along its second axis, and ranks that hold none of it."""
    folder = shared(tmp_path)

    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 700, 1), nn.Conv2d(700, 900, 3, padding=1))

    weights = [1.0, *[0.0] * (world().size - 1)]
    module = build(0)
    plan = hetmp.plan_from_weights(hetmp.read_graph(module), weights)
    model = hetmp.slice_model(module, plan.with_layer("1", scheme="inputs"), world())
    for writer in ("streamed", "parallel"):
        hetmp.save(folder / f"{writer}.h5", model, writer=writer)
    assert contents(folder / "streamed.h5") == contents(folder / "parallel.h5")
    other = hetmp.slice_model(build(1), uneven(world().size), world())
    hetmp.load(folder / "parallel.h5", other)
    merged = hetmp.merge_model(other)
    assert all(torch.equal(merged[name], t) for name, t in build(0).state_dict().items())
