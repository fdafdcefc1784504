"""Batches that are read in shares: whole and the same on every rank, each image read once."""

import threading
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import torch

import hetmp
from helpers.comparison import WEIGHTS, world_size
from hetmp import data
from hetmp.cluster import AgreedError
from hetmp.core.errors import HetmpError
from hetmp.core.partition import apportion
from hetmp.data import Augmentation, Dataset, Feed, Part, Reading, Split


class Counted(Part):
    """Images of known numbers, of which each read is counted."""

    def __init__(self, count: int, shape=(2, 3, 4), dtype="uint8", label_shape=(), broken=()):
        self.shape, self.dtype, self.label_shape = shape, np.dtype(dtype), label_shape
        rng = np.random.default_rng(7)
        self.images = rng.integers(0, 256, (count, *shape)).astype(self.dtype)
        self.labels = rng.integers(0, 9, (count, *label_shape))
        self.broken = set(broken)
        self.read_by_me = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, chosen):
        with self._lock:
            self.read_by_me.update(chosen.tolist())
        if self.broken & set(chosen.tolist()):
            raise HetmpError(f"image {min(self.broken & set(chosen.tolist()))} is damaged")
        return self.images[chosen], self.labels[chosen]


def dataset_of(part: Part, **changed) -> Dataset:
    channels = part.shape[0]
    told = {
        "name": "counted", "train": part, "test": part, "classes": 9, "input_shape": part.shape,
        "split_name": "none", "split_seed": 0, "mean": (100.0,) * channels,
        "std": (50.0,) * channels,
    }  # fmt: skip
    return Dataset(**{**told, **changed})


def feed_of(part: Part, weights, augmentation=None, readers=1, dtype=torch.float64) -> Feed:
    reading = Reading(weights, readers, dtype=dtype)
    return Feed(dataset_of(part), part, hetmp.Group(), reading, augmentation or Augmentation())


def normalised(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).double() - 100) / 50


@pytest.mark.every_size
@pytest.mark.mpi
@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("kind", sorted(WEIGHTS))
@pytest.mark.parametrize(
    ("dtype", "label_shape"), [("uint8", ()), ("float32", ()), ("uint8", (3, 4))]
)
def test_shares_make_whole_batches(kind, dtype, label_shape, readers):
    """Every rank gets every image; over all ranks each was read once, in proportion."""
    weights, group = WEIGHTS[kind](world_size()), hetmp.Group()
    part = Counted(47, dtype=dtype, label_shape=label_shape)
    feed = feed_of(part, weights, readers=readers)
    order = data.batch_indices(47, 10, seed=5, epoch=3)
    batches = list(feed.shuffled(10, seed=5, epoch=3))
    assert len(batches) == len(order) == 5
    for (images, labels), chosen in zip(batches, order, strict=True):
        assert torch.equal(images, normalised(part.images[chosen]))
        assert torch.equal(labels, torch.from_numpy(part.labels[chosen]))
    shares = [apportion(len(chosen), weights).counts[group.rank] for chosen in order]
    mine = np.array([part.read_by_me[i] for i in range(47)])
    assert mine.sum() == sum(shares)
    assert (group.allgather(mine).sum(axis=0) == 1).all()
    assert feed.waited > 0


@pytest.mark.every_size
@pytest.mark.mpi
def test_in_order_and_from_a_batch_on():
    part = Counted(23)
    feed = feed_of(part, [1.0] * world_size())
    images, labels = (torch.cat(parts) for parts in zip(*feed.in_order(6), strict=True))
    assert torch.equal(images, normalised(part.images))
    assert torch.equal(labels, torch.from_numpy(part.labels))
    whole = [images for images, _ in feed.shuffled(6, seed=1, epoch=0, drop_last=True)]
    later = [images for images, _ in feed.shuffled(6, seed=1, epoch=0, drop_last=True, start=2)]
    assert [len(some) for some in whole] == [6, 6, 6]
    assert len(later) == 1
    assert torch.equal(later[0], whole[2])
    assert list(feed.shuffled(6, seed=1, epoch=0, drop_last=True, start=3)) == []


@pytest.mark.every_size
@pytest.mark.mpi
def test_a_feed_that_is_left_early_goes_on_anew():
    """What was begun for the next batch is not taken for one of the next epoch."""
    part = Counted(40)
    feed = feed_of(part, [1.0] * world_size())
    for taken in range(3):
        with closing(feed.shuffled(8, seed=0, epoch=0)) as batches:
            for _ in range(taken):
                next(batches)
    images, _ = next(iter(feed.in_order(8)))
    assert torch.equal(images, normalised(part.images[:8]))


@pytest.mark.every_size
@pytest.mark.mpi(min_size=2)
def test_an_image_that_one_rank_cannot_read_ends_it_on_all():
    """In words that name the rank; what was read before it is whole."""
    group = hetmp.Group()
    weights = [1.0] * group.size
    part = Counted(40, broken=[39])
    told, seen = "", 0
    try:
        for images, _ in feed_of(part, weights).in_order(8):
            assert torch.equal(images, normalised(part.images[seen : seen + 8]))
            seen += 8
    except AgreedError as error:
        told = str(error)
    assert seen == 32
    assert group.gather_texts(told) == [f"rank {group.size - 1}: image 39 is damaged"] * group.size


@pytest.mark.every_size
@pytest.mark.mpi
def test_what_every_rank_holds_is_not_sent():
    part = Split(torch.arange(24.0).view(6, 1, 2, 2), torch.arange(6))
    whole = dataset_of(part, normalised=True)
    feed = Feed(whole, part, hetmp.Group(), Reading([1.0] * world_size(), dtype=torch.float64))
    (first, labels), _ = feed.in_order(4)
    assert torch.equal(first, part.images[:4].double())
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.every_size
@pytest.mark.mpi
@pytest.mark.parametrize("augmentation", [None, Augmentation(True, crop=1)])
def test_a_rank_reads_and_gets_the_images_that_it_needs(augmentation):
    """Those of the whole batch bit for bit, wherever they lie in it; labels are whole."""
    group = hetmp.Group()
    weights, part = WEIGHTS["one zero"](group.size), Counted(23)
    draws = augmentation.draws(5, 1, 23) if augmentation else None

    def needed(images: int) -> list[np.ndarray]:
        """Every rank's positions; the first images go to the last rank."""
        ends = np.cumsum(apportion(images, weights[::-1]).counts)[:-1]
        return np.split(np.arange(images), ends)[::-1]

    order = data.batch_indices(23, 6, seed=5, epoch=1)
    feed = feed_of(part, [1.0] * group.size, augmentation, readers=2)
    batches = list(feed.shuffled(6, seed=5, epoch=1, needed=needed))
    expected = Counter()
    for (images, labels), chosen in zip(batches, order, strict=True):
        own = chosen[needed(len(chosen))[group.rank]]
        whole, _ = (augmentation.apply(part.images[own], part.labels[own], own, draws)
                    if augmentation else (part.images[own], None))  # fmt: skip
        assert torch.equal(images, normalised(whole))
        assert torch.equal(labels, torch.from_numpy(part.labels[chosen]))
        expected.update(own.tolist())
    assert part.read_by_me == expected
    (first, labels), *_ = feed.in_order(6, needed)
    assert torch.equal(first, normalised(part.images[needed(6)[group.rank]]))
    assert torch.equal(labels, torch.from_numpy(part.labels[:6]))


@pytest.mark.mpi(min_size=2)
def test_an_image_that_its_only_reader_cannot_read_ends_it_on_all():
    group = hetmp.Group()
    part = Counted(8 * group.size, label_shape=(3, 4), broken=[8 * group.size - 1])

    def needed(images: int) -> list[np.ndarray]:
        return np.array_split(np.arange(images), group.size)

    told = ""
    try:
        for _ in feed_of(part, [1.0] * group.size).in_order(4 * group.size, needed):
            pass
    except AgreedError as error:
        told = str(error)
    words = f"rank {group.size - 1}: image {8 * group.size - 1} is damaged"
    assert group.gather_texts(told) == [words] * group.size


@pytest.mark.every_size
@pytest.mark.mpi
@pytest.mark.parametrize("augmentation", [Augmentation(flip=True), Augmentation(True, crop=2)])
def test_images_change_alike_for_any_ranks(augmentation):
    """As one process alone would change them, whoever reads them; and not alike in each epoch."""
    part = Counted(30, shape=(2, 6, 5), label_shape=(6, 5) if not augmentation.crop else ())
    feed = feed_of(part, range(1, world_size() + 1), augmentation)
    epochs = []
    for epoch in range(2):
        order = data.batch_indices(30, 7, seed=3, epoch=epoch)
        draws = augmentation.draws(3, epoch, 30)
        for (images, labels), chosen in zip(
            feed.shuffled(7, seed=3, epoch=epoch), order, strict=True
        ):
            alone, its_labels = augmentation.apply(
                part.images[chosen], part.labels[chosen], chosen, draws
            )
            assert torch.equal(images, normalised(alone))
            assert torch.equal(labels, torch.from_numpy(its_labels))
        epochs.append(augmentation.apply(part.images, part.labels, np.arange(30), draws)[0])
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], part.images)


def test_a_flip_mirrors_about_half_of_the_images_and_their_pixels_labels():
    images = np.arange(2000 * 6).reshape(2000, 1, 2, 3).astype(np.float32)
    labels = np.arange(2000 * 6).reshape(2000, 2, 3)
    flip = Augmentation(flip=True)
    flipped, turned = flip.apply(images, labels, np.arange(2000), flip.draws(0, 0, 2000))
    mirrored = (flipped == images[..., ::-1]).all(axis=(1, 2, 3))
    same = (flipped == images).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 880 < mirrored.sum() < 1120  # a fair coin is outside of it once in 10 million
    assert ((turned == labels[..., ::-1]).all(axis=(1, 2)) == mirrored).all()


def test_a_crop_is_a_window_of_the_padded_image_and_comes_from_anywhere():
    crop, images = Augmentation(crop=1), np.arange(1, 901 * 6 - 5).reshape(900, 1, 2, 3)
    cut, _ = crop.apply(images, np.zeros(900, int), np.arange(900), crop.draws(4, 2, 900))
    seen = Counter()
    for image, found in zip(images[:, 0], cut[:, 0], strict=True):
        padded = np.pad(image, 1)
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(found, padded[top : top + 2, left : left + 3])
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9
    assert min(seen.values()) > 60  # of 100 expected


def test_a_crop_of_images_with_a_label_for_each_pixel_is_refused():
    part = Counted(3, label_shape=(3, 4))
    with pytest.raises(HetmpError, match="has a label for every pixel"):
        Augmentation(crop=1).check(dataset_of(part))
    with pytest.raises(HetmpError, match="height and width"):
        Augmentation(crop=1).check(dataset_of(Counted(3, shape=(2, 5))))
    Augmentation(flip=True).check(dataset_of(part))
