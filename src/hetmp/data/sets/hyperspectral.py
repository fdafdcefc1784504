"""Hyperspectral scenes: the patches around the labelled pixels of one image with many bands."""

import numpy as np
import numpy.typing as npt

from hetmp.core.checks import whole_number
from hetmp.core.errors import HetmpError
from hetmp.data.arrays import checked_labels
from hetmp.data.dataset import Dataset, Indices, Part
from hetmp.data.disjoint import split_apart
from hetmp.data.formats.scene import find_scene, read_standardised, read_truth
from hetmp.data.options import Options
from hetmp.data.splitting import drawn
from hetmp.data.survey import Found

NAME = "hyperspectral"
OPTIONS = (
    "data_path",
    "images_key",
    "labels_key",
    "classes",
    "patch",
    "test_share",
    "split_seed",
    "disjoint",
)

PATCH = 9
"""Default side of a patch in pixels."""

TEST_SHARE = 0.85
"""Default share of the labelled pixels for testing: in this field few are trained on."""


class ScenePatches(Part):
    """Patches float32 (1, bands, patch, patch), cut out of the scene as they are read."""

    dtype = np.dtype(np.float32)
    everywhere = True

    def __init__(
        self,
        cube: npt.NDArray[np.float32],
        pixels: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        patch: int,
    ) -> None:
        """
        Args:
            cube: (bands, h + patch - 1, w + patch - 1), the scene with its borders mirrored.
            pixels: (n, 2), row and column within the scene of those that are classified.
            labels: (n,).
        """
        self.shape = (1, len(cube), patch, patch)
        self._patches = np.lib.stride_tricks.sliding_window_view(cube, (patch, patch), axis=(1, 2))
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        patches = np.empty((len(chosen), *self.shape), self.dtype)
        for patch, (row, column) in zip(patches, self._pixels[chosen], strict=True):
            patch[0] = self._patches[:, row, column]
        return patches, self._labels[chosen]

    def titles(self, chosen: Indices) -> list[str]:
        """Return where the pixels are, counted from 0 at the top left."""
        return [f"row {row}, column {column}" for row, column in self._pixels[chosen]]


def survey(options: Options) -> Found:
    """Read the scene, standardised and with mirrored borders, and find the pixels of both parts."""
    image, truth = find_scene(options.path(NAME), options.images_key, options.labels_key)
    height, width, _ = image.shape
    patch = whole_number("patch", PATCH if options.patch is None else options.patch, 1)
    if patch % 2 == 0 or patch > min(height, width):
        raise HetmpError(
            f"patch is an odd number, so that there is a pixel in the middle, and at most "
            f"{min(height, width)}, the shorter side of the scene of {height} x {width} pixels, "
            f"got {patch}"
        )
    classes = read_truth(truth)  # (h, w), 0 where there is no label
    pixels = np.argwhere(classes > 0)
    if not len(pixels):
        raise HetmpError(f"{truth}: no pixel has a label above 0, so there is nothing to learn")
    count = None if options.classes is None else whole_number("classes", options.classes, 2)
    labels = checked_labels(f"{truth}, less 1", classes[classes > 0] - 1, count)
    if count is None and int(labels.max()) < 1:
        raise HetmpError(f"{truth}: every label is 1: there must be at least two classes")
    train, test, share, seed = drawn(
        options, labels, lambda label: f"a pixel of class {label + 1} of {truth}", TEST_SHARE
    )
    name = f"scene-by-class-{share!r}"
    if options.disjoint:
        name = f"scene-disjoint-{share!r}-patch-{patch}"
        train, test = split_apart(pixels, labels, (height, width), patch, share, seed)
    cube = np.ascontiguousarray(read_standardised(image).transpose(2, 0, 1))
    margin = patch // 2
    return {
        "cube": np.pad(cube, ((0, 0), (margin, margin), (margin, margin)), mode="reflect"),
        "patch": patch,
        "classes": count or int(labels.max()) + 1,
        "train_pixels": pixels[train],
        "test_pixels": pixels[test],
        "train_labels": labels[train],
        "test_labels": labels[test],
        "split_name": name,
        "split_seed": seed,
    }


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the data set, whose two parts share the scene.

    It is normalised already: each band by its own mean and deviation, of all pixels of the
    scene, which belong to neither part. So ``mean`` is 0 and ``std`` is 1.
    """
    cube, patch = metadata["cube"], metadata["patch"]
    return Dataset(
        name=NAME,
        train=ScenePatches(cube, metadata["train_pixels"], metadata["train_labels"], patch),
        test=ScenePatches(cube, metadata["test_pixels"], metadata["test_labels"], patch),
        classes=metadata["classes"],
        input_shape=(1, len(cube), patch, patch),
        split_name=metadata["split_name"],
        split_seed=metadata["split_seed"],
        mean=(0.0,),
        std=(1.0,),
        normalised=True,
    )
