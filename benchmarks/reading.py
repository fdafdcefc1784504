"""How much of reading images is hidden behind the training, for every kind of data.

Problem: images are read and decoded by threads beside the training, each on one rank, and joined
a step ahead. On nodes whose cores are busy with the training, that is not free. This writes the
same images as every kind of file, trains one network on each, and compares the images a second
with those of batches that lie ready in memory (training alone).

Every round gives each kind of data a turn of some steps, of which the first are not timed, as
they were read while others had their turn; figures are medians over the rounds, and ratios are
of these. "reading" is what one thread takes for an image of that kind, with nothing beside it.

Cost: seconds for the files (512 images), then about a minute per round.

    mpirun -n 2 python benchmarks/reading.py paper-cifar
    mpirun -n 2 python benchmarks/reading.py mobilenet_v2 --weights 3,1 --rounds 9
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hetmp
from hetmp import data, models
from hetmp.data import Dataset, Feed, Reading, Split

IMAGES, CLASSES = 512, 10
UNTIMED = 6
"""Steps at the beginning of a turn: more than are read ahead."""

LARGE = 256
"""Side in pixels of the larger pictures, which are brought to 32."""

KINDS = {
    "CIFAR-10 binary": ("cifar10", "cifar-10-batches-bin", {}),
    "npz": ("npz", "images.npz", {}),
    "HDF5": ("hdf5", "plain.h5", {}),
    "HDF5, gzip, chunks of 32": ("hdf5", "packed.h5", {}),
    "folder of PNG": ("folder", "png", {}),
    "folder of JPEG": ("folder", "jpg", {}),
    f"folder of JPEG {LARGE}×{LARGE}": ("folder", "large", {"shape": (3, 32, 32)}),
}
"""Data set, where it lies, and its settings."""


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Digits of 32×32 in three colours, uint8 (n, 3, 32, 32), and their labels."""
    found = load_digits()
    grey = np.kron(found.images[:IMAGES] * 15, np.ones((4, 4))).astype(np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], axis=1), found.target[:IMAGES]


def write(folder: Path) -> None:
    """The same images as every kind of file."""
    images, labels = digits()
    cifar = folder / "cifar-10-batches-bin"
    cifar.mkdir()
    records = np.column_stack([labels.astype(np.uint8), images.reshape(IMAGES, -1)])
    for number, some in enumerate(np.array_split(records, 5), start=1):
        some.tofile(cifar / f"data_batch_{number}.bin")
    records[:64].tofile(cifar / "test_batch.bin")
    parts = {"x_train": images, "y_train": labels, "x_test": images[:64], "y_test": labels[:64]}
    np.savez_compressed(folder / "images.npz", **parts)
    for name, how in (("plain", {}), ("packed", {"chunks": (32, 3, 32, 32), "compression": 4})):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("train/images", data=images, **how)
            file.create_dataset("test/images", data=images[:64], **how)
            file["train/labels"], file["test/labels"] = labels, labels[:64]
    for name, suffix, side in (("png", "png", 32), ("jpg", "jpg", 32), ("large", "jpg", LARGE)):
        for part, numbers in (("train", range(IMAGES)), ("test", range(64))):
            for i in numbers:
                inside = folder / name / part / str(labels[i])
                inside.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(images[i].transpose(1, 2, 0)).resize((side, side))
                picture.save(inside / f"{i}.{suffix}")


def alone(batch_size: int) -> Dataset:
    """The images ready in memory: what is left is the training."""
    images, labels = digits()
    part = Split(torch.from_numpy(images).float() / 64 - 2, torch.from_numpy(labels))
    return Dataset(
        "alone", part, part, CLASSES, (3, 32, 32), "none", 0, (0.0,) * 3, (1.0,) * 3, True
    )


def for_ever(feed: Feed, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    return chain.from_iterable(
        feed.shuffled(batch_size, seed=0, epoch=epoch, drop_last=True) for epoch in count()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a network by name")
    parser.add_argument("--weights", help="relative speeds, one per rank; equal if not given")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="timed, of a turn")
    parser.add_argument("--readers", type=int, default=1)
    told = parser.parse_args()
    group = hetmp.Group()
    weights = [float(w) for w in told.weights.split(",")] if told.weights else [1.0] * group.size
    torch.manual_seed(0)
    model = hetmp.slice_model(models.build(told.model, (3, 32, 32), CLASSES), weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(group.broadcast_text(made))
        with group.together():
            if group.is_root:
                write(folder)
        sets = {"training alone": alone(told.batch_size)}
        for kind, (name, where, settings) in KINDS.items():
            sets[kind] = data.load(name, group, data_path=folder / where, **settings)
        reading = Reading(weights, told.readers)
        feeds = {kind: Feed(one, one.train, group, reading) for kind, one in sets.items()}
        batches = {kind: for_ever(feed, told.batch_size) for kind, feed in feeds.items()}
        cost = {kind: read_alone(one) for kind, one in sets.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in sets}
        waited: dict[str, list[float]] = {kind: [] for kind in sets}
        for _ in range(told.rounds):
            for kind in sets:
                for step in range(UNTIMED + told.steps):
                    if step == UNTIMED:
                        group.meet()
                        began, before = time.perf_counter(), feeds[kind].waited
                    images, labels = next(batches[kind])
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(images), labels).backward()
                    optimizer.step()
                seconds[kind].append((time.perf_counter() - began) / told.steps)
                waited[kind].append((feeds[kind].waited - before) / told.steps)
        show(group, told.batch_size, seconds, waited, cost)
        group.meet()  # the files are rank 0's to remove


def read_alone(dataset: Dataset) -> float:
    """Seconds that one thread takes to read an image."""
    chosen = np.random.default_rng(0).permutation(len(dataset.train))[:128]
    dataset.train.read(chosen[:8])
    began = time.perf_counter()
    dataset.train.read(chosen)
    return (time.perf_counter() - began) / len(chosen)


def show(
    group: hetmp.Group,
    batch_size: int,
    seconds: dict[str, list[float]],
    waited: dict[str, list[float]],
    cost: dict[str, float],
) -> None:
    """Medians on rank 0, and their ratios to training alone."""
    base = statistics.median(seconds["training alone"])
    group.say(f"{'':28}  images/s  of alone  waited  reading, µs/image")
    for kind, times in seconds.items():
        step = statistics.median(times)
        group.say(
            f"{kind:28}  {batch_size / step:8.0f}  {base / step:8.2f}  "
            f"{100 * statistics.median(waited[kind]) / step:4.1f} %  {1e6 * cost[kind]:8.0f}"
        )


if __name__ == "__main__":
    main()
