"""Images and labels of your own, as arrays in a NumPy .npz archive or in two of them.

`hetmp.data.arrays.ordered_images` says which axis of the images is the channels.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetmp.core.checks import image_shape
from hetmp.core.errors import HetmpError
from hetmp.data.arrays import Array, checked_labels, ordered_images, ordered_labels
from hetmp.data.dataset import Dataset
from hetmp.data.formats.npz import NpzFile, open_npz
from hetmp.data.options import Options
from hetmp.data.splitting import divided, refuse_split
from hetmp.data.survey import Found, assembled, class_count, with_moments

NAME = "npz"
OPTIONS = (
    "data_path",
    "test_path",
    "images_key",
    "labels_key",
    "test_share",
    "split_seed",
    "shape",
    "classes",
    "mean",
    "std",
)

Keys = tuple[str, str]
"""The names of images and of labels."""

TRAIN_KEYS: tuple[Keys, ...] = (("x_train", "y_train"), ("train_images", "train_labels"))
TEST_KEYS: tuple[Keys, ...] = (("x_test", "y_test"), ("test_images", "test_labels"))
WHOLE_KEYS: Keys = ("images", "labels")
"""The names in an archive that is not in two parts, or holds one of them alone."""

Pair = tuple[Array, npt.NDArray[np.int64]]
"""Images (n, c, *spatial) with labels (n,) or (n, *spatial)."""


def survey(options: Options) -> Found:
    """Read and check all images and labels, in the two parts.

    With ``test_path`` the archives are the parts. Else the archive has both, by the names of its
    arrays; or we divide it by class, or by image where each pixel has a label.

    Raises:
        HetmpError: a file or an array is missing, damaged, or not what it should be; an option
            does not apply to what was found.
    """
    path, test_path = options.path(NAME), options.test_path
    with open_npz(path) as file:
        keys = _keys(options, file, (*TRAIN_KEYS, WHOLE_KEYS))
        train = _read(options, file, keys)
        classes = class_count(options, train[1], f"{keys[1]} in {path}")
        checked_labels(f"{keys[1]} in {path}", train[1], classes)
        named = options.images_key is not None or options.labels_key is not None
        if test_path is None and keys in TRAIN_KEYS and not named:
            parts = {"train": train, "test": _test(options, file, TEST_KEYS, train, classes)}
            metadata: Found = {"split_name": f"{NAME}-parts"}
            refuse_split(options, path)
        elif test_path is None:
            parts, metadata = _divided(options, train)
    if test_path is not None:
        refuse_split(options, test_path)
        with open_npz(Path(test_path)) as file:
            test = _test(options, file, (*TEST_KEYS, WHOLE_KEYS), train, classes)
        parts = {"train": train, "test": test}
        metadata = {"split_name": f"{NAME}-files"}
    for part, (images, labels) in parts.items():
        metadata |= {f"{part}_images": images, f"{part}_labels": labels}
    metadata |= {"classes": classes, "shape": list(train[0].shape[1:])}
    return with_moments(options, metadata)


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the data set: images (n, c, *spatial), bytes or float32, and their labels."""
    return assembled(NAME, metadata)


def _keys(options: Options, file: NpzFile, usual: tuple[Keys, ...]) -> Keys:
    """Return a part's names in *file*: those of the options, else the first *usual* that exist."""
    if options.images_key is not None or options.labels_key is not None:
        return options.images_key or WHOLE_KEYS[0], options.labels_key or WHOLE_KEYS[1]
    for keys in usual:
        if keys[0] in file.keys:
            return keys
    known = ", ".join(images for images, _ in usual)
    raise HetmpError(
        f"{file.path} has no array of images named {known}: it has "
        f"{', '.join(sorted(file.keys)) or 'no arrays'}; name the arrays with images_key and "
        "labels_key (--images-key, --labels-key)"
    )


def _read(options: Options, file: NpzFile, keys: Keys) -> Pair:
    shape = None if options.shape is None else image_shape("shape", options.shape)
    images = ordered_images(f"{keys[0]} in {file.path}", file.read(keys[0]), shape)
    where = f"{keys[1]} in {file.path}"
    return images, checked_labels(where, ordered_labels(where, file.read(keys[1]), images))


def _test(
    options: Options, file: NpzFile, usual: tuple[Keys, ...], train: Pair, classes: int
) -> Pair:
    """Read the test part, which must be like *train*."""
    keys = _keys(options, file, usual)
    images, labels = _read(options, file, keys)
    checked_labels(f"{keys[1]} in {file.path}", labels, classes)
    for what, here, there in (
        ("shape", images.shape[1:], train[0].shape[1:]),
        ("type", images.dtype, train[0].dtype),
        ("axes of labels", labels.ndim, train[1].ndim),
    ):
        if here != there:
            raise HetmpError(
                f"{keys[0]} in {file.path}: {what} {here}, for training {there}: save both parts "
                "alike"
            )
    return images, labels


def _divided(options: Options, whole: Pair) -> tuple[dict[str, Pair], Found]:
    """Divide into both parts: a share of each class is for testing, or of all if per pixel."""
    images, labels = whole
    kinds = labels if labels.ndim == 1 else None
    train, test, how = divided(options, NAME, kinds, len(labels))
    parts = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
    return parts, how
