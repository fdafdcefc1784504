"""Data sets in the files that others publish: MNIST, CIFAR, and NumPy's archives."""

import builtins
import codecs
import gc
import gzip
import io
import os
import pickle
import random
import shutil
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import hetmp
from helpers.data_files import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    Parts,
    digit_parts,
    idx_bytes,
    pickled,
    write_cifar10,
    write_cifar100,
    write_mnist,
    write_npz,
    write_tar,
)
from hetmp import data
from hetmp.core.errors import HetmpError
from hetmp.data import Dataset, Part
from hetmp.data.formats.pickles import read_pickle
from hetmp.data.options import Options
from hetmp.data.sets import mnist as mnist_loader
from hetmp.data.survey import moments

GREY = digit_parts()
COLOUR = digit_parts(side=32, channels=3)


def keyed(parts: Parts) -> dict[str, np.ndarray]:
    return dict(zip(("x_train", "y_train", "x_test", "y_test"), parts, strict=True))


class Format(NamedTuple):
    """A way to write a data set."""

    name: str
    parts: Parts
    write: Callable[[Path], Path]
    """To a folder that there is not yet; gives what ``data_path`` is."""
    everywhere: bool


FORMATS: dict[str, Format] = {
    "mnist": Format("mnist", GREY, lambda at: write_mnist(at, *GREY), False),
    "mnist-gz": Format("mnist", GREY, lambda at: write_mnist(at, *GREY, gz=True), True),
    "npz": Format("npz", GREY, lambda at: write_npz(at / "own.npz", **keyed(GREY)), True),
}
for _kind in ("binary", "python", "binary-tar", "python-tar"):
    for _name, _write in (("cifar10", write_cifar10), ("cifar100", write_cifar100)):
        FORMATS[f"{_name}-{_kind}"] = Format(
            _name,
            COLOUR,
            lambda at, write=_write, kind=_kind: write(at, *COLOUR, kind=kind),
            _kind != "binary",
        )


def everything(part: Part) -> tuple[np.ndarray, np.ndarray]:
    return part.read(np.arange(len(part)))


def check(dataset: Dataset, parts: Parts) -> None:
    """The data set is *parts*, image by image."""
    for part, images, labels in ((dataset.train, *parts[:2]), (dataset.test, *parts[2:])):
        found, known = everything(part)
        images = images.reshape(len(images), *dataset.input_shape)
        assert (found.dtype, known.dtype) == (images.dtype, np.int64)
        assert np.array_equal(found, images)
        assert np.array_equal(known, labels)
        assert (part.shape, part.dtype) == (dataset.input_shape, images.dtype)


def refusal(name: str, **settings: Any) -> str:
    with pytest.raises(HetmpError) as refused:
        data.load(name, **settings)
    return str(refused.value)


# What is written is what is read


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_back_what_was_written(kind: str, tmp_path: Path) -> None:
    name, parts, write, everywhere = FORMATS[kind]
    dataset = data.load(name, data_path=write(tmp_path / "set"))
    check(dataset, parts)
    assert dataset.name == name
    assert dataset.classes == (100 if name == "cifar100" else 10)
    assert dataset.train.everywhere == dataset.test.everywhere == everywhere
    assert not dataset.normalised
    assert dataset.split_seed == 0
    names = {"cifar10": tuple(CIFAR10_NAMES), "cifar100": tuple(CIFAR100_NAMES)}
    assert dataset.class_names == names.get(name, ())


@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_read_in_any_order_and_more_than_once(kind: str, tmp_path: Path) -> None:
    name, parts, write, _ = FORMATS[kind]
    dataset = data.load(name, data_path=write(tmp_path / "set"))
    chosen = np.array([39, 0, 7, 8, 7, 38, 16, 39])
    images, labels = dataset.train.read(chosen)
    assert np.array_equal(images, parts[0].reshape(40, *dataset.input_shape)[chosen])
    assert np.array_equal(labels, parts[1][chosen])
    none, no_labels = dataset.train.read(np.array([], np.int64))
    assert (none.shape, no_labels.shape) == ((0, *dataset.input_shape), (0,))


@pytest.mark.parametrize("kind", FORMATS)
def test_mean_and_deviation_are_those_of_the_training_images(kind: str, tmp_path: Path) -> None:
    name, parts, write, _ = FORMATS[kind]
    path = write(tmp_path / "set")
    dataset = data.load(name, data_path=path)
    images = parts[0].reshape(40, *dataset.input_shape).astype(np.float64)
    assert dataset.mean == pytest.approx(images.mean(axis=(0, 2, 3)), rel=1e-12)
    assert dataset.std == pytest.approx(images.std(axis=(0, 2, 3)), rel=1e-12)
    channels = len(images[0])
    told = data.load(name, data_path=path, mean=(1.5,) * channels, std=(2.0,) * channels)
    assert (told.mean, told.std) == ((1.5,) * channels, (2.0,) * channels)
    assert "mean has 5 numbers" in refusal(name, data_path=path, mean=(0.0,) * 5, std=(1.0,) * 5)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["mnist", "mnist-gz", "cifar10-binary", "npz"])
def test_every_rank_gets_the_same(kind: str) -> None:
    name, parts, write, _ = FORMATS[kind]
    group = hetmp.Group()
    folder = Path(group.broadcast_text(tempfile.mkdtemp() if group.is_root else ""))
    where = group.broadcast_text(str(write(folder / "set")) if group.is_root else "")
    dataset = data.load(name, group, data_path=where)
    with group.together():  # nobody reads any more when the files go
        check(dataset, parts)
        images = parts[0].reshape(-1, *dataset.input_shape)
        assert (dataset.mean, dataset.std) == moments(images)
    if group.is_root:
        (folder / "set").rename(folder / "away")
    with group.together(), pytest.raises(HetmpError, match="does not exist"):
        data.load(name, group, data_path=where)
    if group.is_root:
        shutil.rmtree(folder)


# MNIST


def test_mnist_files_have_a_dot_in_some_copies_and_may_be_mixed(tmp_path: Path) -> None:
    write_mnist(tmp_path, *GREY)
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "train-images.idx3-ubyte")
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    (tmp_path / "t10k-labels.idx1-ubyte.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    images = tmp_path / "t10k-images-idx3-ubyte"
    images.with_name(images.name + ".gz").write_bytes(gzip.compress(images.read_bytes()))
    dataset = data.load("mnist", data_path=tmp_path)
    check(dataset, GREY)
    assert not dataset.test.everywhere  # the plain one is taken where both are there
    images.unlink()
    dataset = data.load("mnist", data_path=tmp_path)
    check(dataset, GREY)
    assert (dataset.train.everywhere, dataset.test.everywhere) == (False, True)


@pytest.mark.parametrize("gz", [False, True])
def test_mnist_images_may_have_any_sides_and_classes(gz: bool, tmp_path: Path) -> None:
    pixels = np.arange(12 * 3 * 5, dtype=np.uint8).reshape(12, 3, 5)
    labels = np.arange(12, dtype=np.uint8) % 4
    parts = (pixels[:8], labels[:8], pixels[8:], labels[8:])
    path = write_mnist(tmp_path / "set", *parts, gz=gz)
    dataset = data.load("mnist", data_path=path)
    check(dataset, parts)
    assert (dataset.input_shape, dataset.classes) == ((1, 3, 5), 4)
    assert data.load("mnist", data_path=path, classes=26).classes == 26
    assert "out of range, 0 to 2" in refusal("mnist", data_path=path, classes=3)
    assert "classes is a whole number" in refusal("mnist", data_path=path, classes=1)


def test_a_file_that_changes_while_in_use_is_an_error(tmp_path: Path) -> None:
    path = write_mnist(tmp_path / "set", *GREY)
    dataset = data.load("mnist", data_path=path)
    images = path / "train-images-idx3-ubyte"
    os.truncate(images, 16 + 10 * 64 + 3)
    assert np.array_equal(dataset.train.read(np.arange(10))[0][:, 0], GREY[0][:10])
    with pytest.raises(HetmpError, match=r"train-images-idx3-ubyte ends within image 10,"):
        dataset.train.read(np.array([3, 10]))


def test_a_file_that_differs_from_that_of_rank_0_is_an_error(tmp_path: Path) -> None:
    options = Options(data_path=write_mnist(tmp_path / "set", *GREY))
    found = mnist_loader.survey(options)
    images = tmp_path / "set" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes() + b"\0")
    with pytest.raises(HetmpError, match=r"t10k-images-idx3-ubyte has 1297 bytes here, 1296 on"):
        mnist_loader.assemble(options, found)
    images.unlink()
    with pytest.raises(HetmpError, match=r"t10k-images-idx3-ubyte cannot be read: No such file"):
        mnist_loader.assemble(options, found)


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = data.load("mnist", data_path=write_mnist(tmp_path / "set", *GREY))

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(HetmpError, match=r"train-images-idx3-ubyte cannot be read: Input/output"):
        dataset.train.read(np.array([0]))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc/self/fd to look into")
def test_files_are_closed_when_the_data_set_is_gone(tmp_path: Path) -> None:
    def opened() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(str(tmp_path) in os.readlink(link) for link in links if link.is_symlink())

    dataset = data.load("cifar10", data_path=write_cifar10(tmp_path, *COLOUR))
    assert opened() == 6
    del dataset
    gc.collect()
    assert opened() == 0


# CIFAR


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize(
    ("name", "write"), [("cifar10", write_cifar10), ("cifar100", write_cifar100)]
)
def test_cifar_is_found_in_its_parent_too_and_needs_no_names(
    name: str, write: Callable[..., Path], kind: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, *COLOUR, kind=kind)
    check(data.load(name, data_path=tmp_path), COLOUR)
    for file in ("batches.meta.txt", "batches.meta", "fine_label_names.txt", "meta"):
        (folder / file).unlink(missing_ok=True)
    dataset = data.load(name, data_path=folder)
    check(dataset, COLOUR)
    assert dataset.class_names == ()


def test_cifar_archives_may_be_unpacked_by_gunzip_alone(tmp_path: Path) -> None:
    packed = write_cifar10(tmp_path, *COLOUR, kind="binary-tar")
    plain = tmp_path / "cifar.tar"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    check(data.load("cifar10", data_path=plain), COLOUR)


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_other_protocols_and_of_this_numpy_are_read(
    protocol: int, tmp_path: Path
) -> None:
    folder = write_cifar10(tmp_path, *COLOUR, kind="python")
    for number, at in enumerate(np.array_split(np.arange(40), 5), start=1):
        # Column by column, for an array may be stored so.
        pixels = np.asfortranarray(COLOUR[0][at].reshape(len(at), -1))
        table = {b"data": pixels, b"labels": COLOUR[1][at].tolist()}
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps(table, protocol))
    check(data.load("cifar10", data_path=folder), COLOUR)


class Making:
    """Unpickled by Python, makes a folder."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.made = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["file", "names", "archive"])
def test_a_pickle_that_would_run_code_does_not(place: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    evil = pickle.dumps({b"data": Making(os.mkdir, str(mark))}, protocol)
    pickle.loads(evil)
    assert mark.is_dir()  # so it would
    mark.rmdir()
    path = write_cifar10(tmp_path, *COLOUR, kind="python")
    (path / ("batches.meta" if place == "names" else "data_batch_3")).write_bytes(evil)
    if place == "archive":
        contents = {file.name: file.read_bytes() for file in path.iterdir()}
        path = write_tar(tmp_path / "evil.tar.gz", "cifar-10-batches-py", contents)
    told = refusal("cifar10", data_path=path)
    assert f"wants to run code ({os.mkdir.__module__}.mkdir)" in told
    assert ("batches.meta" if place == "names" else "data_batch_3") in told
    assert path.name in told
    assert not mark.exists()


@pytest.mark.parametrize(
    "named", [eval, getattr, np.fromfile, np.load, builtins.open, bytearray, pickle.loads]
)
def test_names_that_arrays_are_not_made_of_are_refused(named: Callable[..., Any]) -> None:
    with pytest.raises(HetmpError, match=rf"batch wants to run code \(.*{named.__name__}\)"):
        read_pickle("batch", pickle.dumps({b"data": Making(named, "1")}, 2))


def test_what_a_pickle_names_is_not_called_even_where_it_may_be_named() -> None:
    """Neither a large array is made, nor one of Python's codecs is run."""
    array = pickle.dumps({b"data": Making(np.ndarray, (10**14,), "u1")}, 2)
    assert read_pickle("batch", array)["data"].arguments == ((10**14,), "u1")
    with pytest.raises(HetmpError, match="batch is not a pickle, or is damaged"):
        read_pickle("batch", pickle.dumps({b"data": Making(codecs.encode, "x", "rot13")}, 2))


def test_a_pickle_with_absurd_numbers_takes_no_memory() -> None:
    for content in (
        b"\x80\x02}r\xff\xff\xff\xff.",  # remembered as item 4294967295
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray of 2**40
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",  # bytes, as many
        b"\x80\x02}p99999999999\n.",
    ):
        with pytest.raises(HetmpError, match="batch is not a pickle, or is damaged"):
            read_pickle("batch", content)


# NumPy's archives


def test_npz_knows_other_names_and_compression(tmp_path: Path) -> None:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    path = write_npz(tmp_path / "x.npz", compressed=True, **dict(zip(names, GREY, strict=True)))
    check(data.load("npz", data_path=path), GREY)


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        (("images", "labels"), {}),
        (("pixels", "what"), {"images_key": "pixels", "labels_key": "what"}),
        (("x_train", "y_train"), {"images_key": "x_train", "labels_key": "y_train"}),
    ],
)
def test_npz_of_one_part_is_divided_by_class(
    keys: tuple[str, str], settings: dict[str, str], tmp_path: Path
) -> None:
    images, labels = np.concatenate(GREY[::2]), np.concatenate(GREY[1::2])
    path = write_npz(tmp_path / "x.npz", **dict(zip(keys, (images, labels), strict=True)))
    dataset = data.load("npz", data_path=path, **settings)
    assert dataset.split_name == "npz-by-class-0.2"
    of_each = [max(1, round(0.2 * count)) for count in np.bincount(labels)]
    assert np.array_equal(np.bincount(everything(dataset.test)[1]), of_each)
    pixels = np.concatenate([everything(part)[0] for part in (dataset.train, dataset.test)])
    known = np.concatenate([everything(part)[1] for part in (dataset.train, dataset.test)])
    written = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    assert sorted((i.tobytes(), k) for i, k in zip(pixels, known, strict=True)) == written
    other = data.load("npz", data_path=path, **settings, split_seed=4, test_share=0.5)
    assert (other.split_name, other.split_seed) == ("npz-by-class-0.5", 4)
    assert len(other.test) == pytest.approx(30, abs=5)
    again = data.load("npz", data_path=path, **settings, split_seed=4, test_share=0.5)
    assert np.array_equal(everything(other.test)[0], everything(again.test)[0])


@pytest.mark.parametrize(
    "keys", [(*("images", "labels") * 2,), ("x_train", "y_train", "x_test", "y_test")]
)
def test_npz_of_two_files(keys: tuple[str, ...], tmp_path: Path) -> None:
    train = write_npz(tmp_path / "a.npz", **dict(zip(keys[:2], GREY[:2], strict=True)))
    test = write_npz(tmp_path / "b.npz", **dict(zip(keys[2:], GREY[2:], strict=True)))
    dataset = data.load("npz", data_path=train, test_path=test)
    check(dataset, GREY)
    assert dataset.split_name == "npz-files"
    told = refusal("npz", data_path=train, test_path=test, test_share=0.5)
    assert "test_share=0.5 does not apply" in told


@pytest.mark.parametrize(
    ("stored", "shape", "input_shape"),
    [
        ((5, 6), None, (1, 5, 6)),
        ((5, 6, 3), None, (3, 5, 6)),
        ((5, 6, 1), None, (1, 5, 6)),
        ((5, 6, 4), None, (4, 5, 6)),
        ((5, 6, 2), None, (5, 6, 2)),
        ((4, 6, 4), None, (4, 6, 4)),  # both ends would do: first
        ((3, 6, 1), None, (3, 6, 1)),
        ((3, 5, 6), None, (3, 5, 6)),
        ((2, 5, 6), None, (2, 5, 6)),
        ((2, 5, 6, 3), None, (2, 5, 6, 3)),
        ((5, 6, 2), (2, 5, 6), (2, 5, 6)),
        ((5, 6, 2), (5, 6, 2), (5, 6, 2)),
        ((2, 5, 6, 3), (3, 2, 5, 6), (3, 2, 5, 6)),
        ((2, 5, 6), (1, 2, 5, 6), (1, 2, 5, 6)),
        ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
    ],
)
def test_npz_finds_the_channels(
    stored: tuple[int, ...],
    shape: tuple[int, ...] | None,
    input_shape: tuple[int, ...],
    tmp_path: Path,
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (8, *stored), np.uint8)
    labels = np.arange(8) % 2
    path = write_npz(tmp_path / "x.npz", **keyed((images[:6], labels[:6], images[6:], labels[6:])))
    dataset = data.load("npz", data_path=path, shape=shape)
    assert dataset.input_shape == input_shape
    if len(input_shape) > len(stored) or input_shape == stored:
        expected = images.reshape(8, *input_shape)
    else:
        expected = np.moveaxis(images, -1, 1)
    found = np.concatenate([everything(part)[0] for part in (dataset.train, dataset.test)])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (np.float64, np.float32),
        (np.float32, np.float32),
        (">f4", np.float32),
        (np.float16, np.float32),
        (np.int64, np.uint8),
        (">i2", np.uint8),
        (np.bool_, np.uint8),
    ],
)
def test_npz_of_other_numbers(stored: Any, kept: Any, tmp_path: Path) -> None:
    images = (GREY[0] > 100) if stored is np.bool_ else GREY[0]
    parts = (images.astype(stored), GREY[1].astype(">i4"), images[:9].astype(stored), GREY[1][:9])
    path = write_npz(tmp_path / "x.npz", **keyed(parts))
    check(
        data.load("npz", data_path=path),
        (images.astype(kept), GREY[1], images[:9].astype(kept), GREY[1][:9]),
    )


def test_npz_labels_may_be_a_column_or_one_per_pixel(tmp_path: Path) -> None:
    column = keyed((GREY[0], GREY[1][:, None], GREY[2], GREY[3][:, None]))
    check(data.load("npz", data_path=write_npz(tmp_path / "a.npz", **column)), GREY)
    ink = tuple((images > 100).astype(np.int16) for images in GREY[::2])
    path = write_npz(tmp_path / "b.npz", **keyed((GREY[0], ink[0], GREY[2], ink[1])))
    dataset = data.load("npz", data_path=path)
    check(dataset, (GREY[0], ink[0], GREY[2], ink[1]))
    assert (dataset.train.label_shape, dataset.classes) == ((8, 8), 2)
    path = write_npz(tmp_path / "c.npz", images=GREY[0], labels=ink[0])
    dataset = data.load("npz", data_path=path, test_share=0.25)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    assert dataset.split_name == "npz-random-0.25"
    for part in (dataset.train, dataset.test):
        images, labels = everything(part)
        assert np.array_equal(images[:, 0] > 100, labels == 1)


# Options


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "npz"])
def test_a_path_is_needed(name: str, tmp_path: Path) -> None:
    assert "--data-path" in refusal(name)
    told = refusal(name, data_path=tmp_path / "gone")
    assert "gone does not exist" in told
    assert "data/README.md" in told


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mnist", {"test_share": 0.1}),
        ("mnist", {"split_seed": 3}),
        ("mnist", {"test_path": Path("x")}),
        ("cifar10", {"classes": 10}),
        ("cifar100", {"shape": (3, 32, 32)}),
        ("npz", {"samples": 5}),
        ("npz", {"patch": 5}),
    ],
)
def test_options_of_others_are_refused(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    told = refusal(name, data_path=tmp_path, **settings)
    assert f"{next(iter(settings))}=" in told
    assert f"does not apply to data set {name!r}" in told


def test_npz_refuses_a_split_of_what_is_divided_already(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "own.npz", **keyed(GREY))
    for setting in ({"test_share": 0.3}, {"split_seed": 2}):
        told = refusal("npz", data_path=path, **setting)
        assert f"{next(iter(setting))}=" in told
        assert "own.npz has a test part of its own" in told


# Damage


class Damage(NamedTuple):
    """What becomes of a file, and a piece of what is said of it."""

    kind: str
    """Of ``FORMATS``."""
    file: str
    edit: Callable[[bytes], bytes | None]
    """Its new content, or None to remove it."""
    says: str


def patched(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + new + content[at:][len(new) :]


def regzipped(edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: gzip.compress(edit(gzip.decompress(content)))


def batch(**changes: Any) -> Callable[[bytes], bytes]:
    """A file of the Python version, with other values; None takes one out."""
    table: dict[str, Any] = {"data": np.zeros((8, 3072), np.uint8), "labels": [1] * 8} | changes
    content = {key.encode(): value for key, value in table.items() if value is not None}
    return lambda _: pickled(content)


def arrays(**changes: np.ndarray | None) -> Callable[[bytes], bytes]:
    """The archive with other arrays; None takes one out."""

    def written(_: bytes) -> bytes:
        file = io.BytesIO()
        np.savez(file, **{k: v for k, v in (keyed(GREY) | changes).items() if v is not None})
        return file.getvalue()

    return written


def member(content: bytes) -> Callable[[bytes], bytes]:
    """The archive with x_train as *content* says."""

    def written(old: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(old)) as source, zipfile.ZipFile(file, "w") as archive:
            for name in source.namelist():
                archive.writestr(name, content if name == "x_train.npy" else source.read(name))
        return file.getvalue()

    return written


def npy(shape: str, descr: str = "|u1", body: bytes = bytes(40 * 64)) -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def lying_directory(content: bytes) -> bytes:
    """The archive whose directory, too, says that x_train is 2 GB long."""
    content = member(npy("(2000000000,)", body=bytes(99)))(content)
    size = struct.pack("<L", len(npy("(2000000000,)", body=bytes(99))))
    return content.replace(size + size, size + struct.pack("<L", 2000000128))


def without_test(content: bytes) -> bytes:
    """The archive of CIFAR without its test part."""
    file = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as source,
        tarfile.open(fileobj=file, mode="w:gz") as archive,
    ):
        for info in source:
            if "test_batch" not in info.name:
                archive.addfile(info, source.extractfile(info))
    return file.getvalue()


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
BIN, TAR, PY = "data_batch_2.bin", "cifar-10-binary.tar.gz", "data_batch_2"
NAN = np.where(np.arange(40)[:, None, None] == 17, np.nan, GREY[0].astype(np.float64))
LARGE = (np.arange(40)[:, None, None] == 17) * 1e300 + GREY[0].astype(np.float64)

DAMAGE: dict[str, Damage] = {
    # MNIST
    "idx: empty": Damage("mnist", IMAGES, lambda b: b"", "ends after 0 bytes, within its header"),
    "idx: cut in its head": Damage("mnist", IMAGES, lambda b: b[:9], "within its header of 16"),
    "idx: cut in its magic": Damage("mnist", LABELS, lambda b: b[:3], "within its header of 8"),
    "idx: cut": Damage("mnist", IMAGES, lambda b: b[:-1], "2560 bytes, and only 2559 follow"),
    "idx: labels cut": Damage("mnist", LABELS, lambda b: b[:-1], "only 39 follow"),
    "idx: too long": Damage("mnist", IMAGES, lambda b: b + b"x", "and more follow"),
    "idx: labels too long": Damage("mnist", LABELS, lambda b: b + b"x", "and more follow"),
    "idx: wrong magic": Damage("mnist", IMAGES, patched(0, b"\1"), "is not an IDX file"),
    "idx: wrong type": Damage("mnist", IMAGES, patched(2, b"\x0d"), "type 0x0d"),
    "idx: axes": Damage("mnist", IMAGES, lambda b: idx_bytes(GREY[1]), "has 1 axes, not 3"),
    "idx: labels are images": Damage(
        "mnist", LABELS, lambda b: idx_bytes(GREY[0]), "has 3 axes, not 1"
    ),
    "idx: absurd": Damage("mnist", IMAGES, patched(4, b"\xff" * 12), "and only 2560 follow"),
    "idx: no images": Damage(
        "mnist", IMAGES, lambda b: idx_bytes(np.zeros((0, 8, 8))), "is empty: its sides are 0×8×8"
    ),
    "idx: no pixels": Damage("mnist", IMAGES, patched(8, bytes(4)), "sides are 40×0×8"),
    "idx: fewer labels": Damage("mnist", LABELS, lambda b: idx_bytes(GREY[1][:-1]), "40 images, "),
    "idx: fewer images": Damage(
        "mnist", "t10k-images-idx3-ubyte", lambda b: idx_bytes(GREY[2][1:]), "has 19 images, "
    ),
    "idx: other sides": Damage(
        "mnist",
        "t10k-images-idx3-ubyte",
        lambda b: idx_bytes(GREY[2][:, :4]),
        "of 4×8, those for training are of 8×8",
    ),
    "idx: unknown class": Damage(
        "mnist", "t10k-labels-idx1-ubyte", patched(8 + 3, b"\x0a"), "label 10 of image 3"
    ),
    "idx: one class": Damage("mnist", LABELS, lambda b: idx_bytes(GREY[1] * 0), "every label is 0"),
    "idx: gone": Damage("mnist", LABELS, lambda b: None, f"has no {LABELS}, and no {LABELS}.gz"),
    "idx: is gzip": Damage("mnist", IMAGES, gzip.compress, "add .gz to its name"),
    "idx: is a picture": Damage(
        "mnist", IMAGES, lambda b: b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(99), "is not an IDX file"
    ),
    "gz: is not": Damage(
        "mnist-gz", f"{IMAGES}.gz", gzip.decompress, "not compressed by gzip (Not a gzipped file"
    ),
    "gz: empty": Damage("mnist-gz", f"{IMAGES}.gz", lambda b: b"", "ends after 0 bytes"),
    "gz: cut": Damage("mnist-gz", f"{IMAGES}.gz", lambda b: b[:-300], "is damaged"),
    "gz: cut by its checksum": Damage("mnist-gz", f"{IMAGES}.gz", lambda b: b[:-8], "is damaged"),
    "gz: wrong checksum": Damage(
        "mnist-gz", f"{IMAGES}.gz", lambda b: b[:-8] + b"oops" + b[-4:], "CRC check failed"
    ),
    "gz: labels' wrong checksum": Damage(
        "mnist-gz", f"{LABELS}.gz", lambda b: b[:-8] + b"oops" + b[-4:], "CRC check failed"
    ),
    "gz: rest": Damage("mnist-gz", f"{LABELS}.gz", lambda b: b + b"x", "Not a gzipped file"),
    "gz: mangled": Damage("mnist-gz", f"{IMAGES}.gz", patched(60, b"\xff" * 30), "is damaged"),
    "gz: content cut": Damage(
        "mnist-gz", f"{IMAGES}.gz", regzipped(lambda b: b[:-1]), "and only 2559 follow"
    ),
    "gz: content too long": Damage(
        "mnist-gz", f"{IMAGES}.gz", regzipped(lambda b: b + bytes(9999)), "and more follow"
    ),
    "gz: absurd": Damage(
        "mnist-gz", f"{IMAGES}.gz", regzipped(patched(4, b"\xff" * 12)), "and only 2560 follow"
    ),
    # CIFAR, binary
    "bin: empty": Damage("cifar10-binary", BIN, lambda b: b"", "is empty"),
    "bin: cut": Damage("cifar10-binary", BIN, lambda b: b[:-1], "24583 bytes, which is not"),
    "bin: too long": Damage("cifar10-binary", BIN, lambda b: b + b"x", "whole number of images"),
    "bin: unknown class": Damage(
        "cifar10-binary", BIN, patched(3073 * 5, b"\x0a"), "label 10 of image 5"
    ),
    "bin: gone": Damage("cifar10-binary", BIN, lambda b: None, f"has no {BIN}"),
    "bin: no test": Damage("cifar10-binary", "test_batch.bin", lambda b: None, "test_batch.bin"),
    "bin: names": Damage(
        "cifar10-binary", "batches.meta.txt", lambda b: b"cat\ndog\n", "names 2 classes, not 10"
    ),
    "bin: coarse class": Damage(
        "cifar100-binary", "train.bin", patched(3074 * 7, b"\x14"), "label 20 of image 7"
    ),
    "bin: fine class": Damage(
        "cifar100-binary", "test.bin", patched(3074 * 7 + 1, b"\x64"), "label 100 of image 7"
    ),
    "bin: of CIFAR-10": Damage(
        "cifar100-binary", "test.bin", lambda b: bytes(3073 * 2), "images of 3074 bytes"
    ),
    # CIFAR, Python
    "pickle: empty": Damage("cifar10-python", PY, lambda b: b"", "is empty"),
    "pickle: cut": Damage("cifar10-python", PY, lambda b: b[:-9], "is not a pickle, or is damaged"),
    "pickle: is text": Damage("cifar10-python", PY, lambda b: b"hello\n" * 9, "is not a pickle"),
    "pickle: HDF5": Damage("cifar10-python", PY, lambda b: b"\x89HDF\r\n\x1a\n", "is not a pickle"),
    "pickle: list": Damage("cifar10-python", PY, lambda b: pickled([1, 2]), "holds a list"),
    "pickle: no data": Damage("cifar10-python", PY, batch(data=None), "has no data"),
    "pickle: no labels": Damage("cifar10-python", PY, batch(labels=None), "has no labels"),
    "pickle: of CIFAR-10": Damage("cifar100-python", "train", batch(), "has no fine_labels"),
    "pickle: data a list": Damage(
        "cifar10-python", PY, batch(data=[1]), "not an array, but a list"
    ),
    "pickle: floats": Damage(
        "cifar10-python", PY, batch(data=np.zeros((8, 3072), np.float32)), "numbers of type f4"
    ),
    "pickle: objects": Damage(
        "cifar10-python", PY, batch(data=np.full((8, 3072), None)), "numbers of type O8"
    ),
    "pickle: shape": Damage(
        "cifar10-python", PY, batch(data=np.zeros((8, 3071), np.uint8)), "has shape (8, 3071)"
    ),
    "pickle: axes": Damage(
        "cifar10-python", PY, batch(data=np.zeros((8, 3, 32, 32), np.uint8)), "has shape (8, 3, 32"
    ),
    "pickle: no images": Damage(
        "cifar10-python", PY, batch(data=np.zeros((0, 3072), np.uint8), labels=[]), "shape (0, 3072"
    ),
    "pickle: lying shape": Damage(
        "cifar10-python", PY, lambda b: b.replace(b"K\x08M\x00\x0c", b"K\x09M\x00\x0c"), "(9, 3072)"
    ),
    "pickle: fewer labels": Damage(
        "cifar10-python", PY, batch(labels=[1] * 7), "has 8 images with 7 labels"
    ),
    "pickle: float labels": Damage(
        "cifar10-python", PY, batch(labels=[1.0] * 8), "not a list of whole numbers"
    ),
    "pickle: labels true": Damage(
        "cifar10-python", PY, batch(labels=[True] * 8), "not a list of whole numbers"
    ),
    "pickle: array of labels": Damage(
        "cifar10-python", PY, batch(labels=np.zeros(8, np.uint8)), "not a list of whole numbers"
    ),
    "pickle: unknown class": Damage(
        "cifar10-python", PY, batch(labels=[1] * 7 + [-1]), "label -1 of image 7"
    ),
    "pickle: absurd class": Damage(
        "cifar10-python", PY, batch(labels=[1] * 7 + [10**30]), "labels are whole numbers"
    ),
    "pickle: coarse class": Damage(
        "cifar100-python",
        "test",
        batch(labels=None, fine_labels=[1] * 8, coarse_labels=[20] * 8),
        "coarse_labels in ",
    ),
    "pickle: names": Damage(
        "cifar10-python", "batches.meta", lambda b: pickled({b"label_names": 3}), "names 0 classes"
    ),
    # CIFAR, archives
    "tar: empty": Damage("cifar10-binary-tar", TAR, lambda b: b"", "is not a .tar or .tar.gz"),
    "tar: is text": Damage("cifar10-binary-tar", TAR, lambda b: b"hello" * 999, "is not a .tar"),
    "tar: gzip alone": Damage(
        "cifar10-binary-tar", TAR, lambda b: gzip.compress(b"hello" * 999), "is not a .tar"
    ),
    "tar: cut": Damage("cifar10-binary-tar", TAR, lambda b: b[: len(b) // 2], "or is damaged"),
    "tar: cut at its end": Damage("cifar10-binary-tar", TAR, lambda b: b[:-5], "or is damaged"),
    "tar: checksum": Damage(
        "cifar10-binary-tar", TAR, lambda b: b[:-8] + b"oops" + b[-4:], "CRC check failed"
    ),
    "tar: content cut": Damage(
        "cifar10-binary-tar", TAR, regzipped(lambda b: b[:30_000]), "or is damaged"
    ),
    "tar: no test": Damage("cifar10-binary-tar", TAR, without_test, "has no test_batch.bin"),
    "tar: of another set": Damage(
        "cifar100-binary-tar",
        "cifar-100-binary.tar.gz",
        regzipped(lambda b: b.replace(b"train.bin", b"other.bin")),
        "has none of the files of data set 'cifar100'",
    ),
    # NumPy's
    "npz: empty": Damage("npz", "own.npz", lambda b: b"", "is not a .npz archive"),
    "npz: HDF5": Damage("npz", "own.npz", lambda b: b"\x89HDF\r\n\x1a\n", "is not a .npz archive"),
    "npz: .npy": Damage("npz", "own.npz", lambda b: npy("(40,8,8)"), "is not a .npz archive"),
    "npz: cut": Damage("npz", "own.npz", lambda b: b[:-30], "is not a .npz archive, or is damaged"),
    "npz: no arrays": Damage("npz", "own.npz", lambda b: b"PK\5\6" + bytes(18), "no arrays"),
    "npz: no images": Damage("npz", "own.npz", arrays(x_train=None), "no array of images named"),
    "npz: no labels": Damage("npz", "own.npz", arrays(y_train=None), "has no y_train"),
    "npz: no test": Damage("npz", "own.npz", arrays(x_test=None), "images named x_test"),
    "npz: no test labels": Damage("npz", "own.npz", arrays(y_test=None), "has no y_test"),
    "npz: checksum": Damage(
        "npz", "own.npz", lambda b: b.replace(GREY[0][5].tobytes(), bytes(64)), "Bad CRC-32"
    ),
    "npz: objects": Damage(
        "npz", "own.npz", arrays(x_train=np.full((40, 8, 8), None)), "holds Python objects"
    ),
    "npz: texts": Damage("npz", "own.npz", arrays(x_train=np.full((40, 8, 8), "a")), "of <U1"),
    "npz: complex": Damage(
        "npz", "own.npz", arrays(x_train=GREY[0].astype(np.complex64)), "type complex64"
    ),
    "npz: lying shape": Damage(
        "npz", "own.npz", member(npy("(10000000000000, 8, 8)")), "and only 2560 follow"
    ),
    "npz: lying directory": Damage("npz", "own.npz", lying_directory, "x_train in"),
    "npz: negative": Damage("npz", "own.npz", member(npy("(-1, -40, 8, 8)")), "is damaged (shape"),
    "npz: too long": Damage("npz", "own.npz", member(npy("(39, 8, 8)")), "and more follow"),
    "npz: no head": Damage("npz", "own.npz", member(b"\x93NUMPY\1\0"), "x_train in"),
    "npz: no magic": Damage("npz", "own.npz", member(b"hello" * 9), "magic string is not correct"),
    "npz: code": Damage("npz", "own.npz", member(npy("__import__('os')")), "x_train in"),
    "npz: whole numbers": Damage(
        "npz", "own.npz", arrays(x_train=GREY[0].astype(int) * 9), "read from 0 to 255"
    ),
    "npz: NaN": Damage("npz", "own.npz", arrays(x_train=NAN), "image 17 has a number"),
    "npz: too large": Damage("npz", "own.npz", arrays(x_train=LARGE), "image 17 has a number"),
    "npz: infinite": Damage(
        "npz", "own.npz", arrays(x_test=np.full((20, 8, 8), np.inf, "f4")), "image 0 has a number"
    ),
    "npz: zero images": Damage("npz", "own.npz", arrays(x_train=GREY[0][:0]), "no images"),
    "npz: no axes": Damage("npz", "own.npz", arrays(x_train=np.array(3)), "two or more sides"),
    "npz: vectors": Damage(
        "npz", "own.npz", arrays(x_train=GREY[0].reshape(40, -1)), "two or more sides"
    ),
    "npz: other sides": Damage("npz", "own.npz", arrays(x_test=GREY[2][:, :4]), "shape (1, 4, 8)"),
    "npz: other type": Damage("npz", "own.npz", arrays(x_test=GREY[2] / 255), "type float32"),
    "npz: fewer labels": Damage(
        "npz", "own.npz", arrays(y_train=GREY[1][1:]), "39 labels for 40 images"
    ),
    "npz: one-hot": Damage("npz", "own.npz", arrays(y_train=np.eye(10)[GREY[1]]), "argmax(axis=1)"),
    "npz: whole one-hot": Damage(
        "npz", "own.npz", arrays(y_test=np.eye(10, dtype=int)[GREY[3]]), "argmax(axis=1)"
    ),
    "npz: axes of labels": Damage(
        "npz", "own.npz", arrays(y_train=np.zeros((40, 4, 4), int)), "or one for each pixel (40, 8"
    ),
    "npz: one label": Damage("npz", "own.npz", arrays(y_train=np.array(3)), "shape (): give one"),
    "npz: float labels": Damage("npz", "own.npz", arrays(y_train=GREY[1] / 2), "these are float64"),
    "npz: negative label": Damage(
        "npz", "own.npz", arrays(y_train=GREY[1].astype(int) - 1), "label -1 of image"
    ),
    "npz: label without end": Damage(
        "npz", "own.npz", arrays(y_train=GREY[1] + np.uint64(2**40)), "needs 1099511627"
    ),
    "npz: label beyond int64": Damage(
        "npz", "own.npz", arrays(y_train=GREY[1] + np.uint64(2**63)), "y_train in"
    ),
    "npz: unknown class": Damage("npz", "own.npz", arrays(y_test=GREY[3] + 7), "y_test in"),
    "npz: one kind of label": Damage(
        "npz", "own.npz", arrays(y_test=np.ones((20, 8, 8), int)), "axes of labels 3"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_with_the_file(damage: str, tmp_path: Path) -> None:
    kind, file, edit, says = DAMAGE[damage]
    path = FORMATS[kind].write(tmp_path / "set")
    data.load(FORMATS[kind].name, data_path=path)  # it was whole
    damaged = path / file if path.is_dir() else path
    before = damaged.read_bytes()
    after = edit(before)
    assert after != before
    if after is None:
        damaged.unlink()
    else:
        damaged.write_bytes(after)
    told = refusal(FORMATS[kind].name, data_path=path)
    assert file in told
    assert says in told
    assert len(told) < 600


FILES = [
    ("mnist", IMAGES),
    ("mnist", LABELS),
    ("mnist-gz", f"{IMAGES}.gz"),
    ("cifar10-binary", BIN),
    ("cifar10-binary", "batches.meta.txt"),
    ("cifar10-python", PY),
    ("cifar10-python", "batches.meta"),
    ("cifar100-python", "train"),
]


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_folder_in_place_of_a_file(kind: str, file: str, tmp_path: Path) -> None:
    path = FORMATS[kind].write(tmp_path / "set")
    (path / file).unlink()
    (path / file).mkdir()
    assert f"{file} is a folder, not a file" in refusal(FORMATS[kind].name, data_path=path)


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(kind: str, file: str, tmp_path: Path) -> None:
    path = FORMATS[kind].write(tmp_path / "set")
    (path / file).unlink()
    os.mkfifo(path / file)
    assert f"{file} is not a file" in refusal(FORMATS[kind].name, data_path=path)


@pytest.mark.parametrize(("kind", "file"), [*FILES, ("npz", ""), ("cifar10-binary-tar", "")])
def test_a_file_that_may_not_be_read(
    kind: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FORMATS[kind].write(tmp_path / "set")
    barred = path / file if file else path
    barred.chmod(0)
    if os.access(barred, os.R_OK):  # root may read all: then what the system would say
        opening = Path.open

        def refuse(self: Path, *arguments: Any) -> Any:
            if self == barred:
                raise PermissionError(13, "Permission denied")
            return opening(self, *arguments)

        monkeypatch.setattr(Path, "open", refuse)
    told = refusal(FORMATS[kind].name, data_path=path)
    assert f"{barred.name} cannot be read: Permission denied" in told


def test_what_is_given_in_place_of_a_folder_or_a_file(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "own.npz", **keyed(GREY))
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "own.npz is a file" in refusal("mnist", data_path=file)
    assert "own.npz is not a .tar or .tar.gz" in refusal("cifar10", data_path=file)
    assert "empty is a folder, not a file" in refusal("npz", data_path=folder)
    for name in ("cifar10", "cifar100"):
        told = refusal(name, data_path=folder)
        assert f"empty has none of the files of data set {name!r}" in told
    told = refusal("npz", data_path=file, test_path=tmp_path / "gone.npz")
    assert "gone.npz cannot be read: No such file" in told
    assert "own.npz has no nothing" in refusal("npz", data_path=file, images_key="nothing")


@pytest.mark.parametrize("kind", FORMATS)
def test_any_change_is_an_error_in_words_or_none(kind: str, tmp_path: Path) -> None:
    """No other exception, whichever bytes are changed, cut or put in."""
    name, _, write, _ = FORMATS[kind]
    path = write(tmp_path / "set")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    chance = random.Random(kind)
    refused = 0
    for _ in range(25):
        file = chance.choice(files)
        before = file.read_bytes()
        # Often near the beginning, where the heads are.
        at = chance.randrange(min(len(before), chance.choice([16, 300, len(before)])))
        new = chance.randbytes(chance.choice([1, 1, 4]))
        skipped = chance.choice([len(new), len(new), 0, 2, len(before)])
        file.write_bytes(before[:at] + new + before[at + skipped :])
        try:
            dataset = data.load(name, data_path=path)
            everything(dataset.train)
            everything(dataset.test)
        except HetmpError as error:
            assert path.name in str(error)
            refused += 1
        file.write_bytes(before)
    assert refused > 0
