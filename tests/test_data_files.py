"""Data sets in files of people's own: folders of images, HDF5, hyperspectral scenes."""

import os
import signal
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from helpers.data_folders import write_folder, write_hdf5, write_picture, write_scene
from hetmp import data
from hetmp.core.errors import HetmpError
from hetmp.data.disjoint import split_apart
from hetmp.data.formats.pictures import decode, header, list_pictures

NAMES = ("ant", "bee", "cow")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def everything(part: Any) -> tuple[np.ndarray, np.ndarray]:
    return part.read(np.arange(len(part)))


def sorted_rows(*parts: Any) -> list[bytes]:
    return sorted(image.tobytes() for part in parts for image in everything(part)[0])


# Folders of images


def two_parts(folder: Path, channels: int = 3, suffix: str = "png") -> tuple[np.ndarray, ...]:
    """12 training and 6 test images of 6 x 5 pixels, classes in turn."""
    images, labels = noise(18, channels, 6, 5), np.arange(18) % 3
    write_folder(folder, images[:12], labels[:12], NAMES, "train", suffix)
    write_folder(folder, images[12:], labels[12:], NAMES, "test", suffix)
    return images, labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_a_folder_gives_the_pixels_that_were_saved(
    tmp_path: Path, channels: int, suffix: str
) -> None:
    if suffix == "webp":  # packed with loss unless it is told otherwise, and never grey
        images, labels = noise(18, 3, 6, 5), np.arange(18) % 3
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            inside = tmp_path / ("train" if number < 12 else "test") / NAMES[label]
            inside.mkdir(parents=True, exist_ok=True)
            write_picture(inside / f"{number:04}.webp", image, lossless=True)
    else:
        images, labels = two_parts(tmp_path, channels, suffix)
    found = data.load("folder", data_path=tmp_path)
    assert found.input_shape == images.shape[1:]
    assert (found.classes, found.class_names) == (3, NAMES)
    assert (found.split_name, found.normalised) == ("folder-given", False)
    for part, expected, told in (
        (found.train, images[:12], labels[:12]),
        (found.test, images[12:], labels[12:]),
    ):
        order = np.argsort(told, kind="stable")  # files come class by class
        read, classes = everything(part)
        assert read.dtype == part.dtype == np.uint8
        assert (read == expected[order]).all()
        assert (classes == told[order]).all() and classes.dtype == np.int64
    train = images[:12].astype(float)
    assert found.mean == pytest.approx(train.mean(axis=(0, 2, 3)))
    assert found.std == pytest.approx(train.std(axis=(0, 2, 3)))


def test_any_order_with_repeats_is_read_and_titled(tmp_path: Path) -> None:
    two_parts(tmp_path)
    part = data.load("folder", data_path=tmp_path).test
    whole, labels = everything(part)
    chosen = np.array([5, 0, 0, 3, 5])
    images, classes = part.read(chosen)
    assert (images == whole[chosen]).all() and (classes == labels[chosen]).all()
    assert part.titles(chosen)[:2] == ["test/cow/0005.png", "test/ant/0000.png"]
    assert part.read(chosen[:0])[0].shape == (0, 3, 6, 5)


def test_jpeg_is_close(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8), (3, 32, 48))
    write_picture(tmp_path / "x.jpg", ramp, quality=95)
    assert np.abs(decode(tmp_path / "x.jpg").astype(int) - ramp).max() <= 3


@pytest.mark.parametrize(("part", "taken"), [("test", True), ("val", True), ("dev", False)])
def test_the_test_part_goes_by_its_usual_names(tmp_path: Path, part: str, taken: bool) -> None:
    two_parts(tmp_path)
    (tmp_path / "test").rename(tmp_path / part)
    if taken:
        assert len(data.load("folder", data_path=tmp_path).test) == 6
    else:
        with pytest.raises(HetmpError, match=r"none called test, val, valid.*--test-path"):
            data.load("folder", data_path=tmp_path)
        apart = data.load("folder", data_path=tmp_path, test_path=tmp_path / part)
        assert len(apart.test) == 6
        assert apart.test.titles(np.array([0])) == ["ant/0000.png"]


def test_without_a_test_part_a_share_of_each_class_is_drawn(tmp_path: Path) -> None:
    images, labels = noise(30, 1, 4, 4), np.arange(30) % 3
    write_folder(tmp_path, images, labels, NAMES, part="")
    found = data.load("folder", data_path=tmp_path)
    assert (len(found.train), len(found.test)) == (24, 6)
    assert (np.bincount(everything(found.test)[1]) == 2).all()
    assert sorted_rows(found.train, found.test) == sorted(image.tobytes() for image in images)
    assert found.split_name == "folder-by-class-0.2"
    again = data.load("folder", data_path=tmp_path, split_seed=7, test_share=0.5)
    assert (len(again.train), again.split_seed) == (15, 7)
    assert again.split_name != found.split_name


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    two_parts(tmp_path)
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / "train" / "ant" / name).write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    found = data.load("folder", data_path=tmp_path)
    assert (len(found.train), found.classes) == (12, 3)
    assert [path.name for path in list_pictures(tmp_path / "test" / "bee")] == [
        "0001.png",
        "0004.png",
    ]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, noise(6, 1, 4, 4), np.arange(6) % 2, ("car", "train"), part="")
    assert data.load("folder", data_path=tmp_path).class_names == ("car", "train")


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (20, 20), (5, 10), (10, 5)])
def test_images_are_resized_to_cover_and_cropped_in_the_middle(
    tmp_path: Path, height: int, width: int
) -> None:
    image = noise(3, height, width)
    write_picture(tmp_path / "x.png", image)
    scale = max(10 / height, 10 / width)
    covering = Image.fromarray(image.transpose(1, 2, 0)).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (covering.width - 10) // 2, (covering.height - 10) // 2
    expected = np.asarray(covering)[top : top + 10, left : left + 10].transpose(2, 0, 1)
    assert np.abs(decode(tmp_path / "x.png", (3, 10, 10)).astype(int) - expected).max() <= 1


def test_a_shrunk_image_is_averaged_and_not_sampled(tmp_path: Path) -> None:
    checks = np.indices((64, 64)).sum(axis=0)[None] % 2 * 255
    write_picture(tmp_path / "x.png", checks.astype(np.uint8))
    assert np.abs(decode(tmp_path / "x.png", (1, 8, 8)).astype(int) - 127).max() <= 8


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_shape_decides_the_channels(tmp_path: Path, channels: int) -> None:
    image = noise(4, 6, 5)
    image[3] = 255
    write_picture(tmp_path / "x.png", image)
    read = decode(tmp_path / "x.png", (channels, 6, 5))
    if channels == 1:
        luma = image[:3].transpose(1, 2, 0) @ np.array([0.299, 0.587, 0.114])
        assert np.abs(read[0] - luma).max() <= 1
    else:
        assert (read == image[:channels]).all()


@pytest.mark.filterwarnings("error")
def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), mode=None)
    image = image.convert("P")
    colours = noise(256, 3)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "x.gif")
    image.save(tmp_path / "y.png", transparency=b"\x00" * 16)
    for name in ("x.gif", "y.png"):
        read = decode(tmp_path / name)
        assert (colours[:16] == read.reshape(3, 16).T).all(), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_was_held_sideways(tmp_path: Path, orientation: int) -> None:
    image = noise(3, 6, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_picture(tmp_path / "x.png", image, exif=exif)
    turned = {
        1: image,
        2: image[:, :, ::-1],
        3: image[:, ::-1, ::-1],
        4: image[:, ::-1],
        5: image.transpose(0, 2, 1),
        6: image[:, ::-1].transpose(0, 2, 1),
        7: image[:, ::-1, ::-1].transpose(0, 2, 1),
        8: image[:, :, ::-1].transpose(0, 2, 1),
    }[orientation]
    assert (decode(tmp_path / "x.png") == turned).all()
    assert header(tmp_path / "x.png") == turned.shape


# HDF5

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first": lambda images: images,
    "last": lambda images: np.moveaxis(images, 1, -1),
}


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4", "float16"])
@pytest.mark.parametrize("how", [{}, {"chunks": True, "compression": "gzip", "shuffle": True}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_hdf5_file_gives_the_numbers_that_were_written(
    tmp_path: Path, dtype: str, how: dict[str, Any], layout: str
) -> None:
    images, labels = noise(20, 3, 6, 5).astype(dtype), np.arange(20, dtype=np.int8) % 4
    stored = LAYOUTS[layout](images)
    write_hdf5(
        tmp_path / "x.h5",
        {
            "train/images": stored[:14],
            "train/labels": labels[:14],
            "test/images": stored[14:],
            "test/labels": labels[14:, None],
        },
        **how,
    )
    found = data.load("hdf5", data_path=tmp_path / "x.h5")
    assert (found.split_name, found.classes, found.input_shape) == ("hdf5-given", 4, (3, 6, 5))
    chosen = np.array([5, 0, 0, 1, 2, 4])
    read, classes = found.test.read(chosen)
    assert (read == images[14:][chosen]).all() and (classes == labels[14:][chosen]).all()
    assert read.dtype == found.test.dtype == ("uint8" if dtype == "uint8" else "float32")
    assert (everything(found.train)[0] == images[:14]).all()
    assert found.test.titles(chosen) == ["5", "0", "0", "1", "2", "4"]
    assert found.test.read(chosen[:0])[0].shape == (0, 3, 6, 5)


@pytest.mark.parametrize(
    ("stored", "told", "shape"),
    [
        ((9, 6, 5), None, (1, 6, 5)),
        ((9, 6, 5, 1), None, (1, 6, 5)),
        ((9, 6, 5, 4), None, (4, 6, 5)),
        ((9, 3, 5, 4), None, (3, 5, 4)),
        ((9, 3, 5, 4), (4, 3, 5), (4, 3, 5)),
        ((9, 7, 6, 5), None, (7, 6, 5)),
        ((9, 7, 6, 5), (5, 7, 6), (5, 7, 6)),
        ((9, 7, 6, 5), (1, 7, 6, 5), (1, 7, 6, 5)),
        ((9, 1, 7, 6, 5), None, (1, 7, 6, 5)),
        ((9, 3, 3, 3), None, (3, 3, 3)),
    ],
)
def test_where_the_channels_are(
    tmp_path: Path, stored: tuple[int, ...], told: Any, shape: tuple[int, ...]
) -> None:
    images = noise(*stored)
    write_hdf5(tmp_path / "x.h5", {"images": images, "labels": np.arange(9) % 2})
    found = data.load("hdf5", data_path=tmp_path / "x.h5", shape=told)
    assert found.input_shape == shape
    last = len(stored) == len(shape) + 1 and stored[1:] != shape
    expected = np.moveaxis(images, -1, 1) if last else images.reshape(9, *shape)
    rows = np.array([int(title) for title in found.train.titles(np.arange(len(found.train)))])
    assert (everything(found.train)[0] == expected[rows]).all()


def test_a_file_without_parts_is_split_by_class(tmp_path: Path) -> None:
    images, labels = noise(40, 6, 5), np.arange(40) % 4
    write_hdf5(tmp_path / "x.h5", {"x": images, "y": labels})
    keys = {"images_key": "x", "labels_key": "y"}
    found = data.load("hdf5", data_path=tmp_path / "x.h5", **keys)
    assert (len(found.train), found.split_name) == (32, "hdf5-by-class-0.2")
    assert (np.bincount(everything(found.test)[1]) == 2).all()
    assert sorted_rows(found.train, found.test) == sorted(image.tobytes() for image in images)
    for part in (found.train, found.test):
        read, classes = everything(part)
        rows = np.array([int(title) for title in part.titles(np.arange(len(part)))])
        assert (read[:, 0] == images[rows]).all() and (classes == labels[rows]).all()
    write_hdf5(tmp_path / "t.h5", {"x": images[:3], "y": labels[:3]})
    paths = {"data_path": tmp_path / "x.h5", "test_path": tmp_path / "t.h5"}
    apart = data.load("hdf5", **paths, **keys)
    assert (len(apart.train), len(apart.test), apart.split_name) == (40, 3, "hdf5-given")


@pytest.mark.parametrize("given", [True, False])
def test_a_label_for_every_pixel_is_read_with_its_image(tmp_path: Path, given: bool) -> None:
    images, labels = noise(10, 1, 6, 5), noise(10, 6, 5, seed=1) % 3
    datasets = {"images": images, "labels": labels}
    if given:
        datasets = {
            f"{part}/{name}": a for part in ("train", "test") for name, a in datasets.items()
        }
    write_hdf5(tmp_path / "x.h5", datasets)
    found = data.load("hdf5", data_path=tmp_path / "x.h5", classes=3)
    assert (len(found.train), len(found.test)) == ((10, 10) if given else (8, 2))
    chosen = np.array([1, 0, 1])
    rows = [int(title) for title in found.test.titles(chosen)]
    read, classes = found.test.read(chosen)
    assert found.test.label_shape == (6, 5)
    assert (read == images[rows]).all() and (classes == labels[rows]).all()
    assert classes.dtype == np.int64


def test_a_soft_link_within_the_file_is_followed(tmp_path: Path) -> None:
    images = noise(8, 6, 5)
    write_hdf5(tmp_path / "x.h5", {"deep/down": images, "labels": np.arange(8) % 2})
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["images"] = h5py.SoftLink("/deep/down")
    assert len(data.load("hdf5", data_path=tmp_path / "x.h5").train) == 6


def test_a_slice_is_read_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hdf5(tmp_path / "x.h5", {"images": noise(100, 6, 5), "labels": np.arange(100) % 2})
    found = data.load("hdf5", data_path=tmp_path / "x.h5", mean=(0,), std=(1,))
    asked: list[slice] = []
    real = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, at: asked.append(at) or real(self, at)
    )
    rows = np.array([int(title) for title in found.train.titles(np.arange(80))])
    found.train.read(np.flatnonzero(np.isin(rows, [*range(90, 100), 3, 4])))
    assert sum(at.stop - at.start for at in asked) <= 12 and asked


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_opens_the_file_anew(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "x.h5", {"images": noise(8, 6, 5), "labels": np.arange(8) % 2})
    part = data.load("hdf5", data_path=tmp_path / "x.h5").train
    expected = everything(part)[0]
    with part._file._lock:  # as if another thread was reading  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends the child, should it wait for its parent's lock
            os._exit(0 if (everything(part)[0] == expected).all() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Hyperspectral scenes


def a_scene(sides: tuple[int, int] = (30, 24), bands: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A cube (h, w, bands) of uint16 and a truth of 3 classes in stripes, a third without one."""
    rng = np.random.default_rng(3)
    cube = rng.integers(0, 5000, (*sides, bands)).astype(np.uint16)
    truth = np.arange(sides[0])[:, None] // 3 % 3 + 1 + np.zeros(sides[1], int)
    truth[rng.random(sides) < 1 / 3] = 0
    return cube, truth.astype(np.uint8)


def mirrored(index: int, side: int) -> int:
    """Where a pixel is that lies beyond the border: the border itself is not repeated."""
    index = abs(index)
    return 2 * (side - 1) - index if index >= side else index


def place(title: str) -> tuple[int, int]:
    row, column = title.replace("row", "").replace("column", "").split(",")
    return int(row), int(column)


def places(part: Any) -> list[tuple[int, int]]:
    return [place(title) for title in part.titles(np.arange(len(part)))]


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("patch", [1, 5])
def test_patches_are_what_a_plain_loop_cuts_out(tmp_path: Path, version: str, patch: int) -> None:
    cube, truth = a_scene()
    write_scene(tmp_path, cube, truth, version=version)
    found = data.load("hyperspectral", data_path=tmp_path, patch=patch)
    assert found.input_shape == found.train.shape == (1, 7, patch, patch)
    assert (found.mean, found.std, found.normalised) == ((0.0,), (1.0,), True)
    assert found.classes == 3
    standard = cube.astype(float)
    standard = (standard - standard.mean(axis=(0, 1))) / standard.std(axis=(0, 1))
    seen = []
    for part in (found.train, found.test):
        images, labels = everything(part)
        assert images.dtype == np.float32 and part.everywhere
        seen += places(part)
        for image, label, (row, column) in zip(images, labels, places(part), strict=True):
            assert label == truth[row, column] - 1
            for i in range(patch):
                for j in range(patch):
                    at = (
                        mirrored(row + i - patch // 2, 30),
                        mirrored(column + j - patch // 2, 24),
                    )
                    assert image[0, :, i, j] == pytest.approx(standard[at], abs=1e-5)
    assert sorted(seen) == [tuple(pixel) for pixel in np.argwhere(truth > 0).tolist()]


def test_of_a_scene_most_is_for_testing(tmp_path: Path) -> None:
    cube, truth = a_scene()
    write_scene(tmp_path, cube, truth)
    found = data.load("hyperspectral", data_path=tmp_path / "Field.mat", patch=3)
    counts = np.bincount(truth[truth > 0] - 1)
    assert (np.bincount(everything(found.test)[1]) == np.round(0.85 * counts)).all()
    assert found.split_name == "scene-by-class-0.85"
    again = data.load("hyperspectral", data_path=tmp_path, patch=3, split_seed=1, test_share=0.5)
    assert places(again.train) != places(found.train)
    # Truth that MATLAB stored as doubles, in the scene's own file, beside other things.
    savemat(tmp_path / "Field.mat", {"a": cube, "b": truth.astype(float), "c": "text", "d": 3.0})
    (tmp_path / "Field_gt.mat").unlink()
    same = data.load("hyperspectral", data_path=tmp_path, patch=3)
    assert places(same.train) == places(found.train)


def test_one_of_several_scenes_is_told_by_its_name(tmp_path: Path) -> None:
    cube, truth = a_scene()
    write_scene(tmp_path, cube, truth)
    write_scene(tmp_path, cube[:20], truth[:20], name="wood")
    with pytest.raises(HetmpError, match=r"which is the scene.*images_key.*field.*wood"):
        data.load("hyperspectral", data_path=tmp_path)
    found = data.load("hyperspectral", data_path=tmp_path, images_key="wood", patch=3)
    assert len(found.train) + len(found.test) == (truth[:20] > 0).sum()


@pytest.mark.parametrize("patch", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_disjoint_parts_share_no_pixel_of_the_scene(tmp_path: Path, patch: int, seed: int) -> None:
    sides = (41, 38)
    cube, truth = a_scene(sides, 2)
    write_scene(tmp_path, cube, truth)
    found = data.load(
        "hyperspectral", data_path=tmp_path, patch=patch, disjoint=True, split_seed=seed
    )
    assert found.split_name == f"scene-disjoint-0.85-patch-{patch}"
    numbers = np.arange(41 * 38).reshape(sides)
    margin = patch // 2
    bordered = np.pad(numbers, margin, mode="reflect")
    used = [
        {int(n) for r, c in places(part) for n in bordered[r : r + patch, c : c + patch].flat}
        for part in (found.train, found.test)
    ]
    assert used[0] and used[1] and not used[0] & used[1]
    for part in (found.train, found.test):
        assert set(everything(part)[1]) == {0, 1, 2}
    labelled = int((truth > 0).sum())
    assert 0.1 * labelled < len(found.train) < 0.5 * labelled
    assert len(found.test) > 0.3 * labelled
    usual = data.load("hyperspectral", data_path=tmp_path, patch=3, disjoint=False)
    assert len(usual.train) + len(usual.test) == labelled  # and none is left out


def test_a_class_in_one_place_cannot_be_in_disjoint_parts() -> None:
    truth = np.ones((30, 30), int)
    truth[10:12, 10:12] = 2
    pixels = np.argwhere(truth > 0)
    with pytest.raises(HetmpError, match="class 2, with 4 labelled pixels, cannot be in both"):
        split_apart(pixels, truth.reshape(-1) - 1, (30, 30), 5, 0.5, 0)


# All of them


@pytest.mark.parametrize("name", ["folder", "hdf5", "hyperspectral"])
def test_threads_read_the_same(tmp_path: Path, name: str) -> None:
    if name == "folder":
        two_parts(tmp_path, suffix="jpg")
        part = data.load(name, data_path=tmp_path, shape=(3, 7, 7)).train
    elif name == "hdf5":
        datasets = {"images": noise(64, 6, 5), "labels": np.arange(64) % 2}
        write_hdf5(tmp_path / "x.h5", datasets, chunks=True, compression="gzip")
        part = data.load(name, data_path=tmp_path / "x.h5").train
    else:
        write_scene(tmp_path, *a_scene())
        part = data.load(name, data_path=tmp_path).train
    orders = [np.random.default_rng(i).integers(0, len(part), 20) for i in range(40)]
    expected = [part.read(order)[0] for order in orders]
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda order: part.read(order)[0], orders)
        assert all((a == b).all() for a, b in zip(read, expected, strict=True))


# Damage. Each writes something wrong and says what to load.

Damage = Callable[[Path], dict[str, Any]]
DAMAGE: list[Any] = []


def damaged(fragment: str, name: str, reading: bool = False) -> Callable[[Damage], Damage]:
    """Told as *fragment*, when data set *name* is loaded; or *reading*, after it was."""

    def add(damage: Damage) -> Damage:
        DAMAGE.append(pytest.param(damage, fragment, name, reading, id=damage.__name__))
        return damage

    return add


def cut(path: Path, share: float = 0.6) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def spoilt(folder: Path, suffix: str = "png", **how: Any) -> Path:
    """The first training image of a good folder of larger images."""
    write_folder(folder, noise(6, 3, 40, 40), np.arange(6) % 3, NAMES, "train", suffix)
    write_folder(folder, noise(6, 3, 40, 40), np.arange(6) % 3, NAMES, "test", suffix)
    return folder / "train" / "ant" / f"0000.{suffix}"


for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif"):

    def truncated(folder: Path, suffix: str = suffix) -> dict[str, Any]:
        cut(spoilt(folder, suffix))
        return {"data_path": folder}

    truncated.__name__ = f"truncated_{suffix}"
    damaged(rf"train/ant/0000\.{suffix} .*damaged\?", "folder")(truncated)


@damaged(r"test/ant/0000\.png cannot be decoded", "folder", reading=True)
def truncated_test_image_is_found_when_it_is_read(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    cut(folder / "test" / "ant" / "0000.png")
    return {"data_path": folder, "shape": (3, 40, 40)}


@damaged(r"0000\.png is not an image of PNG", "folder")
def text_called_png(folder: Path) -> dict[str, Any]:
    spoilt(folder).write_text("this is not an image")
    return {"data_path": folder}


@damaged(r"0000\.png is empty", "folder")
def empty_image(folder: Path) -> dict[str, Any]:
    spoilt(folder).write_bytes(b"")
    return {"data_path": folder, "shape": (3, 8, 8)}


@damaged(r"0000\.bmp claims to have more than 89,478,485 pixels", "folder")
def bomb(folder: Path) -> dict[str, Any]:
    path = spoilt(folder, "bmp")
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 60000, 60000)
    path.write_bytes(content)
    return {"data_path": folder}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_at_which_the_decoder_only_warns_is_refused(tmp_path: Path) -> None:
    path = spoilt(tmp_path, "bmp")
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 10000, 10000)
    path.write_bytes(content)
    with pytest.raises(HetmpError, match="10000 times 10000 pixels"):
        decode(path)


@damaged(r"0001\.png is in colours, 9 high and 40 wide, but .*0000\.png is.*--shape", "folder")
def unlike_sizes(folder: Path) -> dict[str, Any]:
    path = spoilt(folder)
    write_picture(path.parent.parent / "bee" / "0001.png", noise(3, 9, 40))
    return {"data_path": folder}


@damaged(r"test/cow/0002\.png is grey.*--shape", "folder")
def one_is_grey(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    write_picture(folder / "test" / "cow" / "0002.png", noise(1, 40, 40))
    return {"data_path": folder}


@damaged(r"train/dog has no image in it", "folder")
def empty_class(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    (folder / "train" / "dog").mkdir()
    return {"data_path": folder}


@damaged(r"has no folders: put the images of each class", "folder")
def no_classes(folder: Path) -> dict[str, Any]:
    write_picture(folder / "x.png", noise(3, 5, 5))
    return {"data_path": folder}


@damaged(r"one folder with images, only", "folder")
def one_class(folder: Path) -> dict[str, Any]:
    write_folder(folder, noise(4, 3, 5, 5), np.zeros(4, int), ("only",), "")
    return {"data_path": folder}


@damaged(r"unknown class in .*test, 'bees': did you mean 'bee'", "folder")
def unknown_class_in_test(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    (folder / "test" / "bee").rename(folder / "test" / "bees")
    return {"data_path": folder}


@damaged(r"an image of lone occurs only once", "folder")
def class_of_one_image(folder: Path) -> dict[str, Any]:
    write_folder(folder, noise(4, 3, 5, 5), np.array([0, 0, 0, 1]), ("many", "lone"), "")
    return {"data_path": folder}


@damaged(r"nowhere does not exist", "folder")
def missing_folder(folder: Path) -> dict[str, Any]:
    return {"data_path": folder / "nowhere"}


@damaged(r"data_path .*x\.png is a file", "folder")
def file_for_folder(folder: Path) -> dict[str, Any]:
    write_picture(folder / "x.png", noise(3, 5, 5))
    return {"data_path": folder / "x.png"}


@damaged(r"test_path .*nowhere is not a folder", "folder")
def missing_test_folder(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    return {"data_path": folder, "test_path": folder / "nowhere"}


@damaged(r"test_share=0.5 does not apply: .*test has a test part", "folder")
def share_of_given_parts(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    return {"data_path": folder, "test_share": 0.5}


@damaged(r"a\.png is named like an image but is a folder", "folder")
def folder_called_png(folder: Path) -> dict[str, Any]:
    (spoilt(folder).parent / "a.png").mkdir()
    return {"data_path": folder}


@damaged(r"a\.png is named like an image but is neither a file", "folder")
def link_to_nowhere(folder: Path) -> dict[str, Any]:
    (spoilt(folder).parent / "a.png").symlink_to("nowhere.png")
    return {"data_path": folder}


@damaged(r"0000\.gif has 3 frames or pages", "folder")
def animated(folder: Path) -> dict[str, Any]:
    frames = [Image.fromarray(noise(40, 40, seed=i)) for i in range(3)]
    frames[0].save(spoilt(folder, "gif"), save_all=True, append_images=frames[1:])
    return {"data_path": folder}


@damaged(r"0000\.png has pixels of kind 'I;16'.*8 bits per channel", "folder")
def sixteen_bits(folder: Path) -> dict[str, Any]:
    Image.fromarray(noise(40, 40).astype(np.uint16) * 257).save(spoilt(folder))
    return {"data_path": folder}


@damaged(r"shape of images in files is .*got \(2, 8, 8\)", "folder")
def two_channels(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    return {"data_path": folder, "shape": (2, 8, 8)}


@damaged(r"mean has 1 numbers, the images have 3 channels", "folder")
def mean_of_other_channels(folder: Path) -> dict[str, Any]:
    spoilt(folder)
    return {"data_path": folder, "mean": (0.5,), "std": (0.5,)}


def an_hdf5(folder: Path, how: dict[str, Any] | None = None, **datasets: Any) -> dict[str, Any]:
    """A good file but for *datasets*, of which None leaves one out."""
    good = {"images": noise(12, 16, 16), "labels": np.arange(12) % 3} | datasets
    arrays = {name: array for name, array in good.items() if array is not None}
    write_hdf5(folder / "x.h5", arrays, **(how or {}))
    return {"data_path": folder / "x.h5"}


@damaged(r"x\.h5 cannot be read as an HDF5 file: .*truncated", "hdf5")
def truncated_hdf5(folder: Path) -> dict[str, Any]:
    told = an_hdf5(folder)
    cut(folder / "x.h5")
    return told


@damaged(r"x\.h5 cannot be read as an HDF5 file: .*signature", "hdf5")
def no_hdf5(folder: Path) -> dict[str, Any]:
    (folder / "x.h5").write_text("no HDF5 at all" * 100)
    return {"data_path": folder / "x.h5"}


@damaged(r"is not a file: give an HDF5 file", "hdf5")
def folder_for_hdf5(folder: Path) -> dict[str, Any]:
    return {"data_path": folder}


@damaged(r"test\.h5 does not exist", "hdf5")
def missing_test_hdf5(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder) | {"test_path": folder / "test.h5"}


@damaged(r"unknown dataset of .*x\.h5, 'imags': did you mean 'images'", "hdf5")
def misspelt_dataset(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder) | {"images_key": "imags"}


@damaged(r"unknown dataset of .*'labels'.*known: i", "hdf5")
def missing_labels(folder: Path) -> dict[str, Any]:
    many = {f"i{number}": np.zeros(2) for number in range(40)}
    return an_hdf5(folder, labels=None, **many)


@damaged(r"unknown dataset of .*'test/images'", "hdf5")
def half_of_the_parts(folder: Path) -> dict[str, Any]:
    images, labels = noise(4, 6, 5), np.arange(4) % 2
    write_hdf5(folder / "x.h5", {"train/images": images, "train/labels": labels})
    return {"data_path": folder / "x.h5"}


@damaged(r"'images' is a group, not a dataset; in it: first", "hdf5")
def group_for_dataset(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=None, **{"images/first": noise(12, 6, 5)})


@damaged(r"\(11,\), dataset 'images' has 12 images", "hdf5")
def fewer_labels(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=np.arange(11) % 3)


@damaged(r"label -1 of image 3 is out of range", "hdf5")
def negative_label(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=np.array([0, 1, 2, -1] * 3))


@damaged(r"label 2 of image 2 is out of range, 0 to 1", "hdf5")
def label_beyond_the_classes(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder) | {"classes": 2}


@damaged(r"label 18446744073709551615 with 12 images", "hdf5")
def absurd_label(folder: Path) -> dict[str, Any]:
    labels = np.arange(12, dtype=np.uint64)
    labels[5] = 2**64 - 1
    return an_hdf5(folder, labels=labels)


@damaged(r"labels are whole numbers, these are of type float64", "hdf5")
def float_labels(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=np.arange(12) / 2)


@damaged(r"'labels' is not a dataset of numbers", "hdf5")
def texts_for_labels(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=np.array(["ant", "bee"] * 6, dtype=h5py.string_dtype()))


@damaged(r"'labels' is not a dataset of numbers: it holds \|S3", "hdf5")
def bytes_for_labels(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=np.array([b"ant", b"bee"] * 6))


@damaged(r"every label is 0", "hdf5")
def all_of_one_class(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=np.zeros(12, int))


@damaged(r"image 7 of dataset 'train/images' has a value that is not a finite", "hdf5")
def not_a_number(folder: Path) -> dict[str, Any]:
    images = noise(12, 16, 16).astype(np.float32)
    images[7, 3, 3] = np.nan
    given = {"train/images": images, "train/labels": np.arange(12) % 3}
    given |= {"test/images": images[:2], "test/labels": np.arange(2)}
    return an_hdf5(folder, images=None, labels=None, **given)


@damaged(r"image 7 of dataset 'images' has a value that is not a finite", "hdf5", reading=True)
def infinite_in_float32(folder: Path) -> dict[str, Any]:
    images = noise(12, 16, 16).astype(np.float64)
    images[7, 3, 3] = 1e300
    return an_hdf5(folder, images=images) | {"mean": (0.0,), "std": (1.0,)}


@damaged(r"of type int16: images are uint8 or floating", "hdf5")
def images_of_int16(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=noise(12, 16, 16).astype(np.int16))


@damaged(r"'images' has shape \(\): images are", "hdf5")
def scalar_for_images(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=np.float32(3))


@damaged(r"'images' is not a dataset of numbers", "hdf5")
def nothing_for_images(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=h5py.Empty("f"))


@damaged(r"has no images: its shape is \(0, 16, 16\)", "hdf5")
def no_images(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=noise(0, 16, 16), labels=np.zeros(0, int))


@damaged(r"has shape \(12, 256\): images are", "hdf5")
def flat_images(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=noise(12, 256))


@damaged(r"two or more sides, none of them 0", "hdf5")
def images_without_pixels(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=noise(12, 16, 0))


@damaged(r"each image is \(16, 16\), which is not the given shape \(3, 16, 16\)", "hdf5")
def another_shape(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder) | {"shape": (3, 16, 16)}


@damaged(r"'images' is not a dataset of numbers", "hdf5")
def compound_type(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, images=np.zeros((12, 4, 4), [("r", "u1"), ("g", "u1")]))


@damaged(r"'images' is a link to, or has its numbers in, another file", "hdf5")
def external_link(folder: Path) -> dict[str, Any]:
    told = an_hdf5(folder, images=None)
    write_hdf5(folder / "other.h5", {"images": noise(12, 16, 16)})
    with h5py.File(folder / "x.h5", "a") as file:
        file["images"] = h5py.ExternalLink("other.h5", "images")
    return told


@damaged(r"'way/images' is a link to, or has its numbers in, another file", "hdf5")
def external_link_on_the_way(folder: Path) -> dict[str, Any]:
    told = an_hdf5(folder, images=None)
    write_hdf5(folder / "other.h5", {"images": noise(12, 16, 16)})
    with h5py.File(folder / "x.h5", "a") as file:
        file["way"] = h5py.ExternalLink("other.h5", "/")
    return told | {"images_key": "way/images"}


@damaged(r"'images' is a link to, or has its numbers in, another file", "hdf5")
def external_numbers(folder: Path) -> dict[str, Any]:
    told = an_hdf5(folder, images=None)
    (folder / "raw").write_bytes(noise(12, 16, 16).tobytes())
    with h5py.File(folder / "x.h5", "a") as file:
        file.create_dataset(
            "images", (12, 16, 16), "u1", external=[(str(folder / "raw"), 0, 12 * 256)]
        )
    return told


@damaged(r"'images' is a link to, or has its numbers in, another file", "hdf5")
def virtual_of_another_file(folder: Path) -> dict[str, Any]:
    told = an_hdf5(folder, images=None)
    write_hdf5(folder / "other.h5", {"images": noise(12, 16, 16)})
    layout = h5py.VirtualLayout((12, 16, 16), "u1")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "images", (12, 16, 16))
    with h5py.File(folder / "x.h5", "a") as file:
        file.create_virtual_dataset("images", layout)
    return told


@damaged(r"dataset.* 'images'.*(too many links|known: labels)", "hdf5")
def link_in_a_circle(folder: Path) -> dict[str, Any]:
    told = an_hdf5(folder, images=None)
    with h5py.File(folder / "x.h5", "a") as file:
        file["images"], file["again"] = h5py.SoftLink("/again"), h5py.SoftLink("/images")
    return told


def chunk_spoilt(folder: Path) -> dict[str, Any]:
    """The chunk with images 4 and 5 is spoilt."""
    told = an_hdf5(folder, how=None, images=None)
    with h5py.File(folder / "x.h5", "a") as file:
        images = file.create_dataset(
            "images", data=noise(12, 16, 16), chunks=(2, 16, 16), fletcher32=True
        )
        offset = images.id.get_chunk_info(2).byte_offset
    content = bytearray((folder / "x.h5").read_bytes())
    content[offset + 10] ^= 255
    (folder / "x.h5").write_bytes(content)
    return told


@damaged(r"rows \d+ to \d+ of dataset 'images' cannot be read", "hdf5")
def spoilt_chunk(folder: Path) -> dict[str, Any]:
    return chunk_spoilt(folder)


@damaged(r"rows \d+ to \d+ of dataset 'images' cannot be read", "hdf5", reading=True)
def spoilt_chunk_is_found_when_it_is_read(folder: Path) -> dict[str, Any]:
    return chunk_spoilt(folder) | {"mean": (0.0,), "std": (1.0,)}


@damaged(r"has a label for every pixel: set classes", "hdf5")
def pixels_of_unknown_classes(folder: Path) -> dict[str, Any]:
    return an_hdf5(folder, labels=noise(12, 16, 16) % 3)


@damaged(r"'labels', image 9: label 3 at \(2, 5\) is out of range, 0 to 2", "hdf5", reading=True)
def pixel_beyond_the_classes(folder: Path) -> dict[str, Any]:
    labels = noise(12, 16, 16) % 3
    labels[9, 2, 5] = 3
    return an_hdf5(folder, labels=labels) | {"classes": 3}


@damaged(r"test\.h5: shape of the test images is \[1, 8, 8\]", "hdf5")
def parts_of_two_shapes(folder: Path) -> dict[str, Any]:
    write_hdf5(folder / "test.h5", {"images": noise(4, 8, 8), "labels": np.arange(4) % 3})
    return an_hdf5(folder) | {"test_path": folder / "test.h5"}


def scene_with(folder: Path, cube: Any = None, truth: Any = None, **told: Any) -> dict[str, Any]:
    good = a_scene((20, 18), 4)
    write_scene(folder, good[0] if cube is None else cube, good[1] if truth is None else truth)
    return {"data_path": folder, "patch": 3} | told


for version in ("5", "7.3"):

    def truncated_scene(folder: Path, version: str = version) -> dict[str, Any]:
        write_scene(folder, *a_scene(), version=version)
        cut(folder / "Field.mat")
        return {"data_path": folder}

    truncated_scene.__name__ = f"truncated_mat_{version}"
    damaged(r"Field\.mat cannot be read as a MATLAB file", "hyperspectral")(truncated_scene)


@damaged(r"Field\.mat cannot be read as a MATLAB file", "hyperspectral")
def no_matlab(folder: Path) -> dict[str, Any]:
    told = scene_with(folder)
    (folder / "Field.mat").write_text("cube = [1 2 3]\n" * 50)
    return told


@damaged(r"Field\.mat cannot be read as a MATLAB file", "hyperspectral")
def empty_matlab(folder: Path) -> dict[str, Any]:
    told = scene_with(folder)
    (folder / "Field.mat").write_bytes(b"")
    return told


@damaged(r"has no file \*\.mat", "hyperspectral")
def no_files(folder: Path) -> dict[str, Any]:
    return {"data_path": folder}


@damaged(r"unknown array in .*'feild': did you mean 'field'", "hyperspectral")
def wrong_scene(folder: Path) -> dict[str, Any]:
    return scene_with(folder, images_key="feild")


@damaged(r"unknown array in .*'truth'", "hyperspectral")
def wrong_truth(folder: Path) -> dict[str, Any]:
    return scene_with(folder, labels_key="truth")


@damaged(r"three axes.*there is: field_gt \(20, 18\)", "hyperspectral")
def truth_for_scene(folder: Path) -> dict[str, Any]:
    return scene_with(folder, images_key="field_gt")


@damaged(r"each of 20 x 18 pixels; there is: field_gt \(20, 17\)", "hyperspectral")
def unlike_sides(folder: Path) -> dict[str, Any]:
    return scene_with(folder, truth=a_scene((20, 17))[1])


@damaged(r"each of 20 x 18 pixels; there is: field_gt \(20, 17\)", "hyperspectral")
def unlike_sides_by_name(folder: Path) -> dict[str, Any]:
    return scene_with(folder, truth=a_scene((20, 17))[1], labels_key="field_gt")


@damaged(r"which is the ground truth", "hyperspectral")
def two_truths(folder: Path) -> dict[str, Any]:
    told = scene_with(folder)
    savemat(folder / "Other_gt.mat", {"other_gt": a_scene((20, 18))[1]})
    return told


@damaged(r"no pixel has a label above 0", "hyperspectral")
def nothing_labelled(folder: Path) -> dict[str, Any]:
    return scene_with(folder, truth=np.zeros((20, 18), np.uint8))


@damaged(r"there is: no array of two axes", "hyperspectral")
def no_truth(folder: Path) -> dict[str, Any]:
    told = scene_with(folder)
    (folder / "Field_gt.mat").unlink()
    return told


@damaged(r"0\.5 in row 0, column 0 is not a class", "hyperspectral")
def half_a_class(folder: Path) -> dict[str, Any]:
    return scene_with(folder, truth=np.full((20, 18), 0.5))


@damaged(r"label -1 at \(4, 2\) is out of range", "hyperspectral")
def negative_class(folder: Path) -> dict[str, Any]:
    truth = np.ones((20, 18), np.int16)
    truth[4, 2] = -1
    return scene_with(folder, truth=truth)


@damaged(r"label 2 of image \d+ is out of range, 0 to 1", "hyperspectral")
def class_beyond_the_classes(folder: Path) -> dict[str, Any]:
    return scene_with(folder, classes=2)


@damaged(r"nan in row 3, column 2, band 1 is not a finite number", "hyperspectral")
def scene_with_a_hole(folder: Path) -> dict[str, Any]:
    cube = a_scene((20, 18), 4)[0].astype(np.float64)
    cube[3, 2, 1] = np.nan
    return scene_with(folder, cube=cube)


@damaged(r"a pixel of class 3 of .* occurs only once", "hyperspectral")
def class_of_one_pixel(folder: Path) -> dict[str, Any]:
    truth = np.ones((20, 18), np.uint8)
    truth[:5], truth[0, 0] = 2, 3
    return scene_with(folder, truth=truth)


@damaged(r"patch is an odd number.*got 4", "hyperspectral")
def even_patch(folder: Path) -> dict[str, Any]:
    return scene_with(folder, patch=4)


@damaged(r"at most 18, the shorter side.*got 19", "hyperspectral")
def patch_beyond_the_scene(folder: Path) -> dict[str, Any]:
    return scene_with(folder, patch=19)


@damaged(r"every label is 1", "hyperspectral")
def scene_of_one_class(folder: Path) -> dict[str, Any]:
    return scene_with(folder, truth=np.ones((20, 18), np.uint8))


@damaged(r"three axes", "hyperspectral")
def complex_scene(folder: Path) -> dict[str, Any]:
    told = scene_with(folder)
    savemat(folder / "Field.mat", {"field": {"within": a_scene((20, 18))[0]}})
    return told


@damaged(r"not an array of real numbers", "hyperspectral")
def scene_of_complex_numbers(folder: Path) -> dict[str, Any]:
    return scene_with(folder, cube=a_scene((20, 18), 4)[0] * 1j)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("damage", "fragment", "name", "reading"), DAMAGE)
def test_damage_is_told_in_words(
    tmp_path: Path, damage: Damage, fragment: str, name: str, reading: bool
) -> None:
    told = damage(tmp_path)
    if not reading:
        with pytest.raises(HetmpError, match=fragment):
            data.load(name, **told)
    else:
        found = data.load(name, **told)
        with pytest.raises(HetmpError, match=fragment):
            for part in (found.train, found.test):
                everything(part)


@pytest.mark.filterwarnings("ignore")  # the decoder's own words
def test_random_damage_to_images_is_read_or_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp", "ppm"):
        path = tmp_path / f"x.{suffix}"
        write_picture(path, noise(3, 12, 12))
        whole = path.read_bytes()
        told = 0
        for _ in range(60):
            content = bytearray(whole)
            for at in rng.integers(0, min(len(content), 120), 3):
                content[at] = rng.integers(0, 256)
            path.write_bytes(content)
            try:
                assert decode(path, (3, 8, 8)).shape == (3, 8, 8)
            except HetmpError as error:
                assert str(path) in str(error)
                told += 1
        assert told, suffix


def test_random_damage_to_scenes_is_read_or_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cube, truth = a_scene((12, 10), 3)
    write_scene(tmp_path, cube, truth)
    path = tmp_path / "Field.mat"
    assert (loadmat(path)["field"] == cube).all()
    whole = path.read_bytes()
    told = 0
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(100, min(len(content), 400), 3):
            content[at] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            data.load("hyperspectral", data_path=tmp_path, patch=3)
        except HetmpError as error:
            assert str(tmp_path) in str(error)
            told += 1
    assert told
