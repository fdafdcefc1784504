"""What ``hetmp predict`` writes: what the whole network says, on any ranks; and who is refused."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import hetmp
from helpers.data_files import digit_parts
from helpers.data_folders import write_folder, write_hdf5, write_picture
from helpers.running import TRAIN, hetmp_run, refused
from helpers.saving import ranks, shared, uneven, world
from hetmp import data, models
from hetmp.core.errors import HetmpError
from hetmp.run.config import train_config
from hetmp.run.evaluate import evaluate_checkpoint
from hetmp.run.predict import predict
from hetmp.run.train import train

pytestmark = pytest.mark.few_ranks


def trained(folder: Path, **told) -> Path:
    """The folder of a short run on all ranks."""
    told = {"model": "digits", "data": "digits", "dtype": "float64", "batch_size": 100, **told}
    out = folder / "run"
    train(train_config(weights=uneven(world().size), out=out, **told), world())
    world().Barrier()
    return out


def network(file: Path, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> nn.Module:
    """The whole network of a file of double precision, as plain torch has it."""
    module = models.build("digits", shape, classes).double()
    with h5py.File(file) as opened:
        held = {**opened["model"], **opened["buffers"]}
        module.load_state_dict({n: torch.as_tensor(np.asarray(held[n])) for n in held})
    return module.eval()


def said(module: nn.Module, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(class, its probability) of each image."""
    with torch.no_grad():
        best = module(images.double()).softmax(1).max(1)
    return best.indices.numpy(), best.values.numpy()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_rows(path: Path, titles, classes, probabilities, labels=None, names=None) -> None:
    """The CSV file has these columns and no other."""
    found = rows(path)
    wanted = ["image", "class", *(["name"] if names else []), "probability"]
    assert list(found[0]) == wanted + (["label"] if labels is not None else [])
    assert [row["image"] for row in found] == list(titles)
    assert [int(row["class"]) for row in found] == list(classes)
    given = [float(row["probability"]) for row in found]
    np.testing.assert_allclose(given, probabilities, rtol=0, atol=1e-6)
    if labels is not None:
        assert [int(row["label"]) for row in found] == list(labels)
    if names:
        assert [row["name"] for row in found] == [names[k] for k in classes]


def assert_hdf5(path: Path, titles, classes, probabilities, labels=None, names=None) -> None:
    """The HDF5 file has these datasets and no other."""
    with h5py.File(path) as file:
        optional = {"label": labels is not None, "names": bool(names)}
        wanted = {"image", "class", "probability", *(n for n, there in optional.items() if there)}
        assert file.keys() == wanted
        assert file["image"].asstr()[()].tolist() == list(titles)
        np.testing.assert_array_equal(file["class"][()], classes)
        np.testing.assert_allclose(file["probability"][()], probabilities, rtol=0, atol=1e-6)
        if labels is not None:
            np.testing.assert_array_equal(file["label"][()], labels)
        if names:
            assert file["names"].asstr()[()].tolist() == list(names)


@pytest.mark.mpi
@pytest.mark.parametrize("part", ["test", "train"])
def test_the_files_say_what_the_whole_network_says(tmp_path, part):
    run = trained(shared(tmp_path), steps=10)
    split = getattr(data.load("digits"), part)
    classes, probabilities = said(network(run / "model.h5"), split.images)
    labels = split.labels.numpy()
    right = float((classes == labels).mean())
    assert 0.1 < right < 1  # of a network that all its images have one class nothing is learnt
    size = world().size
    for m in sorted({1, (size + 1) // 2, size}):
        some = ranks(range(m))
        if some is not None:
            given = {"weights": uneven(m, turned=True), "batch_size": 77}
            for name, check in (("p.csv", assert_rows), ("p.h5", assert_hdf5)):
                out = run / "new folder" / f"{m}-{name}"
                found = predict(run, out, given, some, part=part)
                assert (found.out, found.file) == (str(out), str(run / "model.h5"))
                assert (found.images, found.ranks) == (len(labels), m)
                assert found.accuracy == pytest.approx(right, abs=1e-12)
                check(out, map(str, range(len(labels))), classes, probabilities, labels)
        hetmp.Group(world()).meet()
    world().Barrier()
    assert not list((run / "new folder").glob(".*"))


NAMES = tuple(f"a {name}, or so" for name in ("zero", "one", "two", "three"))


def folders(folder: Path) -> np.ndarray:
    """Rank 0 writes a data set of four classes, and pictures of none; the training images."""
    images, labels = digit_parts(120, 20)[:2]
    chosen = labels < len(NAMES)
    images, labels = images[chosen][:, None], labels[chosen]
    train_images = images[10:]
    if world().rank == 0:
        ordered = np.argsort(np.array(NAMES))  # the classes are in the order of their names
        assert ordered.tolist() != [0, 1, 2, 3]
        write_folder(folder / "png", train_images, labels[10:], NAMES)
        write_folder(folder / "png", images[:10], labels[:10], NAMES, part="test")
        (folder / "holiday").mkdir()
        for number, image in enumerate(images[:10]):
            write_picture(folder / "holiday" / f"{number}.png", image)
    world().Barrier()
    return train_images


@pytest.mark.mpi
def test_pictures_in_a_folder_get_the_names_of_classes(tmp_path):
    folder = shared(tmp_path)
    images = folders(folder)
    path = folder / "png"
    run = trained(folder, data="folder", data_path=path, batch_size=16, steps=6)
    pictures = digit_parts(120, 20)
    pictures = pictures[0][pictures[1] < len(NAMES)][:10, None]
    mean, std = images.mean(), images.std()
    normalised = (torch.from_numpy(pictures).double() - mean) / std
    names = sorted(NAMES)
    classes, probabilities = said(network(run / "model.h5", classes=4), normalised)
    titles = [f"{number}.png" for number in range(10)]
    weights = uneven(world().size, turned=True)
    for name, check in (("p.csv", assert_rows), ("p.hdf5", assert_hdf5)):
        found = predict(
            run, folder / name, {"weights": weights}, world(), images=folder / "holiday"
        )
        world().Barrier()
        assert (found.images, found.accuracy) == (10, None)
        check(folder / name, titles, classes, probabilities, names=names)
    # The test part's titles are its files; the labels are numbers of the sorted names.
    predict(run, folder / "test.csv", {"weights": weights}, world())
    world().Barrier()
    told = {row["image"]: row for row in rows(folder / "test.csv")}
    files = sorted(str(file.relative_to(path)) for file in path.glob("test/*/*.png"))
    assert list(told) == files
    assert all(names[int(row["label"])] in title for title, row in told.items())
    by_number = {int(Path(title).stem): int(row["class"]) for title, row in told.items()}
    assert [by_number[number] for number in range(10)] == classes.tolist()
    # The data that it was trained on may be gone, and one picture is enough.
    world().Barrier()
    if world().rank == 0:
        shutil.rmtree(path)
    world().Barrier()
    one = folder / "holiday" / "3.png"
    predict(run, folder / "one.csv", {}, world(), images=one)
    world().Barrier()
    assert_rows(folder / "one.csv", ["3.png"], classes[3:4], probabilities[3:4], names=names)


@pytest.mark.mpi
def test_a_class_for_every_pixel_goes_to_hdf5(tmp_path):
    folder, name = shared(tmp_path), "own_network:per_pixel"
    if world().rank == 0:
        images = digit_parts(30, 20)[0][:, None]
        labels = (images[:, 0] > 100).astype(np.uint8)
        write_hdf5(folder / "pixels.h5", {"images": images, "labels": labels})
    world().Barrier()
    told = {"data": "hdf5", "data_path": folder / "pixels.h5", "classes": 2}
    run = trained(folder, model=name, batch_size=8, steps=4, **told)
    with pytest.raises(HetmpError, match=r"a class per pixel .*HDF5"):
        predict(run, folder / "p.csv", {"model": name}, world())
    assert not (folder / "p.csv").exists()
    found = predict(run, folder / "p.h5", {"model": name}, world())
    world().Barrier()
    with h5py.File(folder / "p.h5") as file:
        count = len(file["image"])
        assert found.images == count == 6
        assert file["class"].shape == file["probability"].shape == (count, 8, 8)
        assert float(file["probability"][()].min()) >= 0.5  # of two classes
        right = float((file["class"][()] == file["label"][()]).mean())
    assert found.accuracy == pytest.approx(right, abs=1e-12)
    worth = evaluate_checkpoint(run, {"model": name}, world())
    assert worth.accuracy == pytest.approx(right, abs=1e-12)


@pytest.mark.mpi
def test_a_plan_that_leaves_rank_0_out(tmp_path):
    run = trained(shared(tmp_path), steps=5)
    size = world().size
    plan = hetmp.plan_from_weights(
        hetmp.read_graph(models.build("digits", (1, 8, 8), 10)), [1.0] * max(1, size - 1)
    )
    plan = plan.spread(range(size > 1, size), size)
    if world().rank == 0:
        plan.save(run / "mine.json")
    world().Barrier()
    assert plan.left_out == ((0,) if size > 1 else ())
    found = predict(run, run / "p.csv", {"plan": run / "mine.json"}, world())
    world().Barrier()
    test = data.load("digits").test
    classes, probabilities = said(network(run / "model.h5"), test.images)
    assert_rows(run / "p.csv", map(str, range(360)), classes, probabilities, test.labels.tolist())
    assert (found.images, found.ranks) == (360, size)
    # Who has no part hears why there is nothing.
    with pytest.raises(HetmpError, match=r"p\.csv cannot be written"):
        predict(run, Path("/dev/null/p.csv"), {"plan": run / "mine.json"}, world())


@pytest.mark.mpi
def test_averages_are_the_network_that_is_used(tmp_path):
    run = trained(shared(tmp_path), epochs=2, average=0.9, checkpoint_every="1epoch")
    latest = run / "checkpoints" / "latest.h5"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [r for r in records if r["kind"] == "evaluation"][-1]
    with h5py.File(latest) as kept, h5py.File(run / "model.h5") as final:
        assert "average" not in final
        assert kept["average"].keys() == final["model"].keys()
        for name in kept["average"]:
            np.testing.assert_array_equal(kept["average"][name][()], final["model"][name][()])
            # The weights that the run goes on with are others.
            assert not np.array_equal(kept["model"][name][()], final["model"][name][()])
    given = {"weights": uneven(world().size, turned=True)}
    for number, file in enumerate((latest, run / "model.h5", run)):
        worth = evaluate_checkpoint(file, given, world())
        assert worth.loss == pytest.approx(told["loss"], rel=1e-10)
        assert worth.accuracy == told["accuracy"]
        predict(file, run / f"{number}.csv", given, world())
    world().Barrier()
    assert (run / "0.csv").read_text() == (run / "1.csv").read_text() == (run / "2.csv").read_text()
    test = data.load("digits").test
    classes, probabilities = said(network(run / "model.h5"), test.images)
    titles = map(str, range(len(test)))
    assert_rows(run / "0.csv", titles, classes, probabilities, test.labels.tolist())


@pytest.mark.mpi
def test_what_cannot_be_is_refused_on_every_rank(tmp_path):
    folder = shared(tmp_path)
    run = trained(folder, steps=1)
    if world().rank == 0:
        write_picture(folder / "3.png", digit_parts()[0][:1])
        (folder / "taken.csv").mkdir()
        (folder / "empty").mkdir()
    world().Barrier()
    for out, words, more in (
        ("p.txt", r"cannot tell the format of .*p\.txt from its suffix: use \.csv, \.h5", {}),
        ("p", "cannot tell the format of", {}),
        ("p.csv", "unknown part 'tests': did you mean 'test'", {"part": "tests"}),
        ("p.csv", r"shape \(1, 8, 8\) and dtype float32, which pic", {"images": folder / "3.png"}),
        ("/dev/null/p.csv", r"/dev/null/p\.csv cannot be written", {}),
        ("taken.csv", r"taken\.csv cannot be written", {}),
    ):
        with pytest.raises(HetmpError, match=words) as refusal:
            predict(run, folder / out, {}, world(), **more)
        assert len(set(world().allgather(str(refusal.value)))) == 1
    for path, words in (("empty", "no sound checkpoint in"), ("nothing", "there is no")):
        with pytest.raises(HetmpError, match=words):
            predict(folder / path, folder / "p.csv", {}, world())
    world().Barrier()
    assert not list(folder.glob("*p.*")) and not list(folder.glob(".*"))


@pytest.mark.mpi
def test_pictures_are_refused_in_words(tmp_path):
    folder = shared(tmp_path)
    folders(folder)
    run = trained(folder, data="folder", data_path=folder / "png", batch_size=16, steps=1)
    if world().rank == 0:
        (folder / "empty").mkdir()
        torn = folder / "holiday" / "7.png"
        torn.write_bytes(torn.read_bytes()[:60])
    world().Barrier()
    for name, words in (
        ("empty", "empty contains no picture"),
        ("nowhere", "nowhere"),
        ("holiday", r"7\.png cannot be decoded"),
    ):
        with pytest.raises(HetmpError, match=words) as refusal:
            predict(run, folder / "p.csv", {}, world(), images=folder / name)
        assert len(set(world().allgather(str(refusal.value)))) == 1
    assert not (folder / "p.csv").exists()


def test_the_program_writes_and_refuses(tmp_path):
    run, out = tmp_path / "run", tmp_path / "p.csv"
    done = hetmp_run(*TRAIN, "--steps", 5, "--weights", "3,1", "--out", run, ranks=2)
    assert done.returncode == 0, done.stderr
    done = hetmp_run("predict", run, "--out", out, "--weights", "1,2", ranks=2)
    assert done.returncode == 0, done.stderr
    right = np.mean([row["class"] == row["label"] for row in rows(out)])
    assert done.stdout == (
        f"wrote the classes of 360 images to {out}, {100 * right:.2f} % of the labels predicted, "
        f"on 2 ranks: {run / 'model.h5'}\n"
    )
    done = hetmp_run("predict", run, "--out", tmp_path / "p.txt", ranks=2)
    refused(done, "p.txt from its suffix: use .csv")
    assert done.returncode == 2
    assert done.stdout == ""
