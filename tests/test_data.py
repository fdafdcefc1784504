"""The data sets, and the order in which batches take their images."""

import hashlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from hetmp import data, models
from hetmp.core.errors import HetmpError
from hetmp.data import Dataset, Split


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits")


def pixels(dataset: Dataset, split: Split) -> np.ndarray:
    """The source's pixels, (n, 64) whole numbers, from the standardised images."""
    raw = split.images.double() * dataset.std[0] + dataset.mean[0]
    whole = raw.round()
    assert torch.allclose(raw, whole, rtol=0, atol=1e-5)
    return whole.reshape(-1, 64).numpy().astype(np.uint8)


def digest(*arrays: np.ndarray) -> str:
    """The arrays' bits in little-endian order, in short."""
    bits = (array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
    return hashlib.sha256(b"".join(bits)).hexdigest()[:16]


# digits


def test_digits_has_the_promised_shapes_and_types(digits: Dataset) -> None:
    assert (digits.name, digits.classes, digits.input_shape) == ("digits", 10, (1, 8, 8))
    assert (digits.split_name, digits.split_seed) == ("digits-80-20", 0)
    for split, count in ((digits.train, 1437), (digits.test, 360)):
        assert len(split) == count
        assert split.images.shape == (count, 1, 8, 8)
        assert split.labels.shape == (count,)
        assert (split.images.dtype, split.labels.dtype) == (torch.float32, torch.int64)


def test_the_two_parts_of_digits_hold_every_image_once(digits: Dataset) -> None:
    source_pixels, source_labels = load_digits(return_X_y=True)
    source = np.column_stack([source_labels, source_pixels.astype(np.uint8)])
    parts = np.concatenate(
        [
            np.column_stack([split.labels.numpy(), pixels(digits, split)])
            for split in (digits.train, digits.test)
        ]
    )
    assert sorted(map(tuple, parts)) == sorted(map(tuple, source))


def test_the_classes_of_digits_have_equal_shares_in_both_parts(digits: Dataset) -> None:
    train = torch.bincount(digits.train.labels, minlength=10)
    test = torch.bincount(digits.test.labels, minlength=10)
    share = len(digits.test) / 1797
    assert ((train + test) * share - test).abs().max() <= 1


def test_standardisation_is_fitted_on_the_training_part_alone(digits: Dataset) -> None:
    train, test = pixels(digits, digits.train), pixels(digits, digits.test)
    assert digits.mean == pytest.approx((train.mean(),), rel=1e-12)
    assert digits.std == pytest.approx((train.std(),), rel=1e-12)
    everything = np.concatenate([train, test])
    assert digits.mean[0] != pytest.approx(everything.mean(), rel=1e-6)
    assert digits.std[0] != pytest.approx(everything.std(), rel=1e-6)
    for split, raw in ((digits.train, train), (digits.test, test)):
        expected = (raw - train.mean()) / train.std()
        assert np.allclose(split.images.reshape(-1, 64), expected, rtol=1e-6, atol=1e-7)


def test_the_named_split_is_for_ever(digits: Dataset) -> None:
    """A change here moves test images into training under a name that people have recorded."""
    assert digest(pixels(digits, digits.test), digits.test.labels.numpy()) == "3ea49a6c5c1f0810"


def test_the_training_seed_does_not_move_test_images(digits: Dataset) -> None:
    assert torch.equal(data.load("digits", seed=7).test.images, digits.test.images)
    other = data.load("digits", split_seed=7)
    assert other.split_seed == 7
    assert not torch.equal(other.test.labels, digits.test.labels)


def test_the_network_learns_the_digits(digits: Dataset) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        network = models.build("digits", digits.input_shape, digits.classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for epoch in range(5):
            for images, labels in data.batches(digits.train, 64, seed=0, epoch=epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
        network.eval()
        with torch.no_grad():
            right = network(digits.test.images).argmax(dim=1) == digits.test.labels
    finally:
        torch.set_num_threads(threads)
    assert right.double().mean() > 0.95


# digits-segmentation


@pytest.fixture(scope="module")
def segmented() -> Dataset:
    return data.load("digits-segmentation")


def test_the_segmented_digits_are_the_digits(digits: Dataset, segmented: Dataset) -> None:
    assert (segmented.name, segmented.classes) == ("digits-segmentation", 11)
    assert segmented.input_shape == digits.input_shape
    assert (segmented.split_name, segmented.split_seed) == ("digits-80-20", 0)
    assert (segmented.mean, segmented.std) == (digits.mean, digits.std)
    assert torch.equal(segmented.train.images, digits.train.images)
    assert torch.equal(segmented.test.images, digits.test.images)
    other = data.load("digits-segmentation", split_seed=7)
    assert torch.equal(other.test.images, data.load("digits", split_seed=7).test.images)


@pytest.mark.parametrize("part", ["train", "test"])
def test_ink_has_the_digits_class_and_paper_its_own(
    digits: Dataset, segmented: Dataset, part: str
) -> None:
    whole, split = getattr(digits, part), getattr(segmented, part)
    assert (split.labels.shape, split.labels.dtype) == ((len(whole), 8, 8), torch.int64)
    raw = pixels(digits, whole).reshape(-1, 8, 8)
    expected = np.where(raw >= 5, whole.labels.numpy()[:, None, None], 10)
    assert np.array_equal(split.labels.numpy(), expected)
    assert {4, 5} <= set(raw.flat)  # pixels on either side of the threshold


def test_the_share_of_paper_is_as_described(segmented: Dataset) -> None:
    """data/README.md names it: what a network gets right that calls everything paper."""
    assert (segmented.test.labels == 10).double().mean() == pytest.approx(0.608, abs=5e-4)


def test_unet_learns_the_digits_pixel_by_pixel(segmented: Dataset) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        network = models.build("unet", segmented.input_shape, segmented.classes, width=0.25)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for epoch in range(6):
            for images, labels in data.batches(segmented.train, 64, seed=0, epoch=epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
        network.eval()
        with torch.no_grad():
            right = network(segmented.test.images).argmax(dim=1) == segmented.test.labels
    finally:
        torch.set_num_threads(threads)
    assert right.double().mean() > 0.85


# synthetic


def test_synthetic_has_the_promised_defaults() -> None:
    made = data.load("synthetic")
    assert (made.name, made.classes, made.input_shape) == ("synthetic", 10, (3, 32, 32))
    assert (len(made.train), len(made.test)) == (1000, 200)
    assert (made.train.images.dtype, made.train.labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(torch.bincount(made.train.labels), torch.full((10,), 100))
    assert made.train.images.min() >= -2
    assert made.train.images.max() < 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 9), (1, 3, 4, 5)])
def test_synthetic_takes_any_shape(shape: tuple[int, ...]) -> None:
    made = data.load("synthetic", shape=shape, classes=3, samples=7)
    assert made.train.images.shape == (7, *shape)
    assert made.test.images.shape == (1, *shape)
    assert made.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (len(made.mean), len(made.std)) == (shape[0], shape[0])


def test_synthetic_is_the_same_everywhere() -> None:
    made = data.load("synthetic", seed=5, shape=(1, 3, 3), classes=2, samples=5)
    assert digest(made.train.images.numpy(), made.test.images.numpy()) == "fa111ac7e54b538a"
    other = data.load("synthetic", seed=6, shape=(1, 3, 3), classes=2, samples=5)
    assert not torch.equal(made.train.images, other.train.images)


def test_a_larger_synthetic_set_begins_with_a_smaller_one() -> None:
    # 27 numbers in an image: an odd count, so an image may begin inside a 64-bit word.
    small = data.load("synthetic", shape=(3, 3, 3), classes=4, samples=5).train
    large = data.load("synthetic", shape=(3, 3, 3), classes=4, samples=11).train
    assert torch.equal(large.images[:5], small.images)
    assert torch.equal(large.labels[:5], small.labels)


def test_synthetic_noise_is_even_and_differs_between_the_parts() -> None:
    made = data.load("synthetic", classes=2, samples=1000)
    of_one_class = made.train.images[::2]  # (500, 3, 32, 32)
    noise = of_one_class - of_one_class.mean(dim=0)
    assert noise.var().item() == pytest.approx(1 / 3, rel=0.01)  # uniform on [-1, 1)
    assert not torch.equal(made.train.images[:200], made.test.images)


def test_the_labels_of_synthetic_can_be_learnt_from_its_images() -> None:
    made = data.load("synthetic", classes=7, samples=140)
    images = made.train.images
    means = torch.stack([images[made.train.labels == k].mean(dim=0) for k in range(7)])
    nearest = torch.cdist(made.test.images.flatten(1), means.flatten(1)).argmin(dim=1)
    assert torch.equal(nearest, made.test.labels)


def test_the_loss_of_a_deep_network_falls_on_synthetic() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        made = data.load("synthetic", samples=160)
        network = models.build("paper-cifar", made.input_shape, made.classes, width=0.2)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        losses = []
        for epoch in range(6):
            for images, labels in data.batches(made.train, 32, seed=0, epoch=epoch):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(network(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    finally:
        torch.set_num_threads(threads)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


# what load refuses


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "unknown data set 'digit': did you mean 'digits'?"),
        ("digits", {"shape": (1, 8, 8)}, "shape=(1, 8, 8) does not apply to data set 'digits'"),
        ("digits", {"classes": 10}, "classes=10 does not apply to data set 'digits': leave it"),
        ("digits", {"samples": 5}, "or choose 'synthetic'"),
        ("digits-segmentation", {"classes": 11}, "to data set 'digits-segmentation': leave it"),
        ("digits-segmentation", {"split_seed": -1}, "split_seed is a whole number, 0 to 4294967"),
        ("synthetic", {"split_seed": 3}, "split_seed=3 does not apply to data set 'synthetic'"),
        ("digits", {"split_seed": -1}, "split_seed is a whole number, 0 to 4294967295, got -1"),
        ("digits", {"split_seed": 2**32}, "split_seed is a whole number, 0 to 4294967295, got 4"),
        ("digits", {"seed": -1}, "seed is a whole number, 0 or more, got -1"),
        ("synthetic", {"seed": 0.5}, "seed is a whole number, 0 or more, got 0.5"),
        ("synthetic", {"samples": 0}, "samples is a whole number, 1 or more, got 0"),
        ("synthetic", {"samples": True}, "samples is a whole number, 1 or more, got True"),
        ("synthetic", {"classes": 1}, "classes is a whole number, 2 or more, got 1"),
        ("synthetic", {"shape": (3,)}, "such as (3, 32, 32), got (3,)"),
        ("synthetic", {"shape": 32}, "such as (3, 32, 32), got 32"),
        ("synthetic", {"shape": (3, 0, 4)}, "each side of shape (3, 0, 4) is a whole number, 1"),
        ("synthetic", {"shape": "3x4"}, "is a whole number, 1 or more, got '3'"),
    ],
)
def test_load_refuses_in_words(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(HetmpError, match=re.escape(message)):
        data.load(name, **options)  # type: ignore[arg-type]


def test_a_split_has_one_label_per_image() -> None:
    with pytest.raises(HetmpError, match="3 images with 2 labels"):
        Split(torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64))


# batches

SIZES = st.integers(1, 200)
SEEDS = st.integers(0, 2**70)


@given(n=SIZES, batch_size=SIZES, seed=SEEDS, epoch=st.integers(0, 10**6), shuffle=st.booleans())
def test_an_epoch_takes_every_index_once(
    n: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    taken = data.batch_indices(n, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    assert len(taken) == data.count_batches(n, batch_size)
    assert {len(indices) for indices in taken[:-1]} <= {batch_size}
    assert 1 <= len(taken[-1]) <= batch_size
    flat = np.concatenate(taken)
    assert flat.dtype == np.int64
    assert sorted(flat) == list(range(n))
    assert shuffle or flat.tolist() == list(range(n))


@given(n=SIZES, batch_size=SIZES, seed=SEEDS)
def test_drop_last_drops_the_incomplete_batch_only(n: int, batch_size: int, seed: int) -> None:
    if batch_size > n:
        with pytest.raises(HetmpError, match=f"choose a batch_size of {n} or less"):
            data.batch_indices(n, batch_size, seed=seed, epoch=0, drop_last=True)
        return
    everything = data.batch_indices(n, batch_size, seed=seed, epoch=0)
    kept = data.batch_indices(n, batch_size, seed=seed, epoch=0, drop_last=True)
    assert len(kept) == n // batch_size == data.count_batches(n, batch_size, drop_last=True)
    assert all(len(indices) == batch_size for indices in kept)
    assert all(map(np.array_equal, kept, everything))


@given(n=st.integers(30, 200), seed=SEEDS, epoch=st.integers(0, 1000))
def test_the_order_is_a_function_of_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return data.batch_indices(n, n, seed=seed, epoch=epoch)[0].tolist()

    assert order(seed, epoch) == order(seed, epoch)
    # Two orders of 30 agree by chance once in 30!, about 1e32.
    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed + 1, epoch)
    assert order(seed, epoch) != list(range(n))


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    one = np.concatenate(data.batch_indices(50, 7, seed=1, epoch=2))
    other = np.concatenate(data.batch_indices(50, 50, seed=1, epoch=2))
    assert np.array_equal(one, other)


def test_the_order_is_for_ever() -> None:
    """A change here makes a resumed run see other batches than the run that it continues."""
    order = data.batch_indices(12, 12, seed=0, epoch=0)[0]
    assert order.tolist() == [11, 7, 6, 8, 3, 2, 4, 10, 1, 5, 0, 9]


def test_every_place_is_equally_likely_for_an_image() -> None:
    places = np.zeros((5, 5))
    for epoch in range(4000):
        order = data.batch_indices(5, 5, seed=0, epoch=epoch)[0]
        places[order, np.arange(5)] += 1
    # 800 expected in each cell, standard deviation 25.3: six of them.
    assert np.abs(places - 800).max() < 152


def numbered(n: int) -> Split:
    """Images that show their own index, (n, 1, 2, 2)."""
    numbers = torch.arange(n)
    return Split(numbers.float().reshape(n, 1, 1, 1).expand(n, 1, 2, 2).clone(), numbers)


@given(n=SIZES, batch_size=SIZES, seed=SEEDS, portion=st.floats(0, 1), shuffle=st.booleans())
def test_start_equals_skipping(
    n: int, batch_size: int, seed: int, portion: float, shuffle: bool
) -> None:
    split = numbered(n)
    start = int(portion * data.count_batches(n, batch_size))
    whole = list(data.batches(split, batch_size, seed=seed, epoch=3, shuffle=shuffle))
    rest = list(data.batches(split, batch_size, seed=seed, epoch=3, shuffle=shuffle, start=start))
    assert len(rest) == len(whole) - start
    for (images, labels), (same_images, same_labels) in zip(rest, whole[start:], strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_batches_carry_images_with_their_own_labels() -> None:
    split = numbered(23)
    taken = data.batch_indices(23, 5, seed=9, epoch=1)
    for (images, labels), indices in zip(
        data.batches(split, 5, seed=9, epoch=1), taken, strict=True
    ):
        assert labels.tolist() == indices.tolist()
        assert images.shape == (len(indices), 1, 2, 2)
        assert torch.equal(images[:, 0, 0, 0], labels.float())
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is a whole number, 1 or more, got 0"),
        ({"batch_size": -4}, "batch_size is a whole number, 1 or more, got -4"),
        ({"batch_size": 2.5}, "batch_size is a whole number, 1 or more, got 2.5"),
        ({"batch_size": True}, "batch_size is a whole number, 1 or more, got True"),
        (
            {"batch_size": 11, "drop_last": True},
            "batch_size 11 with drop_last leaves no batch of 10 images: choose a batch_size of 10",
        ),
        ({"seed": -1}, "seed is a whole number, 0 or more, got -1"),
        ({"epoch": -1}, "epoch is a whole number, 0 or more, got -1"),
        ({"start": 4}, "start, a batch of the epoch's 3, is a whole number, 0 to 3, got 4"),
        ({"start": -1}, "start, a batch of the epoch's 3, is a whole number, 0 to 3, got -1"),
    ],
)
def test_batches_refuses_at_the_call(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HetmpError, match=re.escape(message)):
        data.batches(numbered(10), **{"batch_size": 4, "seed": 0, "epoch": 0} | options)


def test_no_images_make_no_batches() -> None:
    with pytest.raises(HetmpError, match="the number of images, is a whole number, 1 or more"):
        data.count_batches(0, 4)


def test_a_small_numpy_integer_is_as_good_as_any() -> None:
    taken = data.batch_indices(200, np.int8(100), seed=0, epoch=0)  # type: ignore[arg-type]
    assert sorted(np.concatenate(taken)) == list(range(200))
