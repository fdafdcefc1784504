"""Runs on data in files of every format: as on one rank, and what becomes of a damaged image."""

import json
from pathlib import Path

import numpy as np
import pytest

import hetmp
from helpers.data_files import digit_parts, write_cifar10, write_mnist, write_npz
from helpers.data_folders import write_folder, write_hdf5, write_scene
from helpers.running import hetmp_run, refused
from helpers.saving import ranks, shared, uneven, world
from hetmp import data
from hetmp.cluster import AgreedError
from hetmp.run.config import train_config
from hetmp.run.train import train

pytestmark = pytest.mark.few_ranks

COUNT = 24
"""Training images, of which a folder holds this many for each test."""


def curves(folder: Path, **told) -> list[tuple[list[float], list[float]]]:
    """(losses of the steps, of the evaluations): on rank 0 alone, then on all ranks."""
    told = {"dtype": "float64", **told}
    alone = ranks([0])
    if alone is not None:
        train(train_config(out=folder / "alone", **told), alone)
    hetmp.Group(world()).meet()  # without burning the core of the one that trains
    train(train_config(out=folder / "all", weights=uneven(world().size), **told), world())
    world().Barrier()
    return [losses(folder / name) for name in ("alone", "all")]


def losses(out: Path) -> tuple[list[float], list[float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return tuple([r["loss"] for r in records if r["kind"] == k] for k in ("step", "evaluation"))


def assert_one_curve(folder: Path, steps: int, **told) -> list[float]:
    """The steps' losses, which are those of one rank; so is the evaluation."""
    alone, together = curves(folder, steps=steps, **told)
    assert len(alone[0]) == steps and alone[1]
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-9)
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-9)
    assert len(set(alone[0])) == steps  # it learns, and the batches are unlike
    return alone[0]


def written(path: Path, write) -> Path:
    """Rank 0's folder, in which *write* has put files."""
    folder = shared(path)
    if world().rank == 0:
        write(folder)
    world().Barrier()
    return folder


AUGMENTED = [{}, {"flip": True, "crop": 2}]


@pytest.mark.mpi
def test_the_papers_network_on_files_of_mnist(tmp_path):
    def write(folder):
        parts = list(digit_parts(12, 6, side=24))
        parts[0], parts[2] = (np.pad(images, ((0, 0), (2, 2), (2, 2))) for images in parts[::2])
        write_mnist(folder / "mnist", *parts, gz=True)

    folder = written(tmp_path, write)
    told = {"model": "paper-mnist", "data": "mnist", "data_path": folder / "mnist"}
    plain, changed = (
        assert_one_curve(folder / str(i), 3, batch_size=4, **told, **more)
        for i, more in enumerate(AUGMENTED)
    )
    assert plain != changed


@pytest.mark.mpi
def test_the_papers_network_on_files_of_cifar(tmp_path):
    def write(folder):
        write_cifar10(folder, *digit_parts(10, 6, side=32, channels=3))

    folder = written(tmp_path, write)
    path = folder / "cifar-10-batches-bin"
    told = {"model": "paper-cifar", "data": "cifar10", "data_path": path, "batch_size": 5}
    plain, changed = (
        assert_one_curve(folder / str(i), 2, **told, **more) for i, more in enumerate(AUGMENTED)
    )
    assert plain != changed


def write_digits(folder: Path) -> None:
    """The same images in an .npz, in HDF5 and as files of their own; and labels of pixels."""
    parts = digit_parts(COUNT, 20, channels=3)
    images = {"x_train": parts[0], "x_test": parts[2]}
    labels = {"y_train": parts[1], "y_test": parts[3]}
    write_npz(folder / "digits.npz", **images, **labels)
    datasets = {
        f"{part}/{name}": parts[2 * i + j]
        for i, part in enumerate(("train", "test"))
        for j, name in enumerate(("images", "labels"))
    }
    write_hdf5(folder / "digits.h5", datasets, chunks=True, compression="gzip")
    names = tuple(map(str, range(10)))
    write_folder(folder / "png", parts[0], parts[1], names)
    write_folder(folder / "png", parts[2], parts[3], names, part="test")
    pixels = {"images": parts[0], "labels": (parts[0][:, 0] > 100).astype(np.uint8)}
    write_hdf5(folder / "pixels.h5", pixels)


KEPT = {"data": "npz", "data_path": "digits.npz"}

SOURCES = {
    "npz": KEPT,
    "npz, augmented": {**KEPT, "flip": True, "crop": 1},
    "hdf5": {"data": "hdf5", "data_path": "digits.h5"},
    "hdf5, augmented": {"data": "hdf5", "data_path": "digits.h5", "flip": True, "crop": 1},
    "folder": {"data": "folder", "data_path": "png", "readers": 2},
    "folder, resized": {"data": "folder", "data_path": "png", "shape": (1, 10, 12), "crop": 3},
    "a class for each pixel": {
        "data": "hdf5",
        "data_path": "pixels.h5",
        "classes": 2,
        "model": "own_network:per_pixel",
        "flip": True,
    },
}


@pytest.mark.mpi
@pytest.mark.parametrize("source", SOURCES)
def test_images_in_files_give_the_curve_of_one_rank(tmp_path, source):
    folder = written(tmp_path, write_digits)
    told = {"model": "digits", **SOURCES[source]}
    told["data_path"] = folder / told["data_path"]
    # Two and a half epochs: the reading ahead ends, begins anew, and is left early.
    assert_one_curve(folder, 8, batch_size=7, **told)


@pytest.mark.mpi
def test_one_set_of_images_has_one_curve_whatever_holds_it(tmp_path):
    folder = written(tmp_path, write_digits)
    # Files come sorted by class: their order is another, and whole batches take it away.
    told = {"model": "own_network:smooth", "batch_size": COUNT, "steps": 3}
    found = []
    for source in ("npz", "hdf5", "folder"):
        path = folder / SOURCES[source]["data_path"]
        out = folder / source
        train(train_config(data=source, data_path=path, out=out, dtype="float64", **told), world())
        world().Barrier()
        found.append(losses(out))
    assert len(found[0][0]) == 3
    for other in found[1:]:
        np.testing.assert_allclose(other[0], found[0][0], rtol=1e-9)
        np.testing.assert_allclose(other[1], found[0][1], rtol=1e-9)


@pytest.mark.mpi
def test_a_hyperspectral_scene_gives_the_curve_of_one_rank(tmp_path):
    def write(folder):
        rng = np.random.default_rng(3)
        truth = rng.integers(0, 4, (13, 11)).astype(np.uint8)
        cube = rng.integers(0, 900, (13, 11, 12)) + 300 * truth[..., None].astype(int)
        write_scene(folder / "scene", cube.astype(np.uint16), truth)

    folder = written(tmp_path, write)
    told = {"data": "hyperspectral", "data_path": folder / "scene", "patch": 3, "test_share": 0.5}
    for i, more in enumerate(AUGMENTED):
        assert_one_curve(folder / str(i), 4, model="hyperspectral", batch_size=9, **told, **more)


# --- an image that is damaged


def damage(folder: Path, batch_size: int) -> tuple[Path, int]:
    """Write digits as files, one of which is torn: it, and how many steps come before it."""
    write_digits(folder)
    files = sorted((folder / "png" / "train").glob("*/*.png"))
    last = data.batch_indices(COUNT, batch_size, seed=0, epoch=0)[-1]
    torn = files[max(last)]
    # The head is whole, so that the survey of all images has nothing to find.
    torn.write_bytes(torn.read_bytes()[:60])
    return torn, COUNT // batch_size - 1


TOLD = {"model": "digits", "data": "folder", "batch_size": 8, "mean": (90,) * 3, "std": (80,) * 3}
"""The mean is told: to find it out would take a look into all images."""


@pytest.mark.mpi
def test_an_image_damaged_in_the_middle_of_a_run_ends_it_on_every_rank(tmp_path):
    folder, before = shared(tmp_path), 2
    torn = ""
    if world().rank == 0:
        path, before = damage(folder, TOLD["batch_size"])
        torn = str(path)
    torn = world().bcast(torn)
    told = train_config(data_path=folder / "png", epochs=2, out=folder / "run", **TOLD)
    with pytest.raises(AgreedError) as refusal:
        train(told, world())
    assert f"{torn} cannot be decoded" in str(refusal.value)
    assert len(set(world().allgather(str(refusal.value)))) == 1
    assert len(losses(folder / "run")[0]) == before == 2
    # Nothing is left on the way: the ranks can go on with other data.
    good = train_config(model="digits", data="digits", steps=1)
    assert train(good, world()).steps == 1


@pytest.mark.parametrize("number", [None, 2])
def test_the_program_ends_with_the_images_name(tmp_path, number):
    torn, before = damage(tmp_path, TOLD["batch_size"])
    flags = [
        *("--model", "digits", "--data", "folder", "--data-path", tmp_path / "png"),
        *("--batch-size", 8, "--mean", "90,90,90", "--std", "80,80,80"),
    ]
    out = tmp_path / "run"
    done = hetmp_run("train", *flags, "--epochs", 2, "--out", out, ranks=number)
    refused(done, f"{torn} cannot be decoded")
    assert done.returncode == 2
    assert len(losses(out)[0]) == before
