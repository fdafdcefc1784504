"""Small data sets written to files, each in the format in which it is published or asked for."""

import gzip
import io
import pickle
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

CIFAR10_NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
CIFAR100_NAMES = [f"fine{number}" for number in range(100)]
CIFAR100_COARSE_NAMES = [f"coarse{number}" for number in range(20)]

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training images and labels, test images and labels; all of them uint8."""


@cache
def digit_parts(train: int = 40, test: int = 20, side: int = 8, channels: int = 0) -> Parts:
    """Handwritten digits as bytes, (n, side, side), each pixel a block; or (n, c, side, side).

    Channels are unlike each other, and so are rows and columns. Each class is in both parts.
    """
    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels.reshape(-1, 8, 8) * 15).astype(np.uint8)
    pixels = pixels.repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    pixels[:, 0, -1], pixels[:, -1, 0] = 255, np.arange(len(pixels)) % 256
    if channels:
        pixels = np.stack([pixels // (channel + 1) for channel in range(channels)], axis=1)
    labels = labels.astype(np.uint8)
    return pixels[:train], labels[:train], pixels[train:][:test], labels[train:][:test]


def write_mnist(
    folder: Path,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    gz: bool = False,
) -> Path:
    """The four IDX files of images (n, h, w) and labels (n,) in *folder*, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (
        ("train-images", train_images),
        ("train-labels", train_labels),
        ("t10k-images", test_images),
        ("t10k-labels", test_labels),
    ):
        content = idx_bytes(array)
        path = folder / f"{name}-idx{array.ndim}-ubyte{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content, mtime=0) if gz else content)
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file holds it."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_cifar10(
    folder: Path,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    kind: str = "binary",
) -> Path:
    """CIFAR-10 of images (n, 3, 32, 32), five or more for training, in five files and one.

    Args:
        folder: where it is put; it is made.
        kind: "binary" or "python"; or "binary-tar" or "python-tar", for the archive.

    Returns:
        The set's folder in *folder*, or the archive.
    """
    version = kind.removesuffix("-tar")
    files = {"test_batch": (test_images, test_labels)}
    for number, at in enumerate(np.array_split(np.arange(len(train_images)), 5), start=1):
        files[f"data_batch_{number}"] = train_images[at], train_labels[at]
    if version == "binary":
        contents = {
            f"{name}.bin": np.column_stack([labels, images.reshape(len(images), -1)]).tobytes()
            for name, (images, labels) in files.items()
        }
        contents["batches.meta.txt"] = ("\n".join(CIFAR10_NAMES) + "\n\n").encode()
    else:
        contents = {
            name: pickled(
                {
                    b"batch_label": name.encode(),
                    b"labels": labels.tolist(),
                    b"data": images.reshape(len(images), -1),
                    b"filenames": [b"%d.png" % index for index in range(len(images))],
                }
            )
            for name, (images, labels) in files.items()
        }
        contents["batches.meta"] = pickled(
            {
                b"num_cases_per_batch": 10000,
                b"label_names": [name.encode() for name in CIFAR10_NAMES],
                b"num_vis": 3072,
            }
        )
    names = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}
    return _put(folder, names[version], f"cifar-10-{version}.tar.gz", contents, kind)


def write_cifar100(
    folder: Path,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    kind: str = "binary",
) -> Path:
    """CIFAR-100, as `write_cifar10`; the labels are the fine ones, a fifth the coarse ones."""
    version = kind.removesuffix("-tar")
    files = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    if version == "binary":
        contents = {
            f"{name}.bin": np.column_stack(
                [labels // 5, labels, images.reshape(len(images), -1)]
            ).tobytes()
            for name, (images, labels) in files.items()
        }
        contents["fine_label_names.txt"] = ("\n".join(CIFAR100_NAMES) + "\n").encode()
        contents["coarse_label_names.txt"] = ("\n".join(CIFAR100_COARSE_NAMES) + "\n").encode()
    else:
        contents = {
            name: pickled(
                {
                    b"filenames": [b"%d.png" % index for index in range(len(images))],
                    b"batch_label": name.encode(),
                    b"fine_labels": labels.tolist(),
                    b"coarse_labels": (labels // 5).tolist(),
                    b"data": images.reshape(len(images), -1),
                }
            )
            for name, (images, labels) in files.items()
        }
        contents["meta"] = pickled(
            {
                b"fine_label_names": [name.encode() for name in CIFAR100_NAMES],
                b"coarse_label_names": [name.encode() for name in CIFAR100_COARSE_NAMES],
            }
        )
    return _put(folder, f"cifar-100-{version}", f"cifar-100-{version}.tar.gz", contents, kind)


class _Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the files of CIFAR have them."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def pickled(value: object) -> bytes:
    """A pickle as Python 2 and an old NumPy wrote it: protocol 2, and the names of NumPy 1."""
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_npz(path: Path, compressed: bool = False, **arrays: np.ndarray) -> Path:
    """The arrays by their names in a .npz at *path*, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def write_tar(path: Path, folder: str, contents: dict[str, bytes]) -> Path:
    """A .tar.gz of files in *folder*, or a .tar by its name."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        made = tarfile.TarInfo(folder)
        made.type = tarfile.DIRTYPE
        archive.addfile(made)
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _put(folder: Path, name: str, archive: str, contents: dict[str, bytes], kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind.endswith("-tar"):
        return write_tar(folder / archive, name, contents)
    (folder / name).mkdir()
    for file, content in contents.items():
        (folder / name / file).write_bytes(content)
    return folder / name
