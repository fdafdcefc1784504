"""Data sets: images and labels that can be read, and the figures that normalise them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hetmp.core.errors import HetmpError

Indices = npt.NDArray[np.int64]


class Part(ABC):
    """The training or the test part of a data set, whose images are read when needed.

    Attributes:
        shape: of an image: channels, then the spatial sides.
        dtype: of the images as they are read: uint8 or float32.
        label_shape: of a label: () for a class per image, the spatial sides for one per pixel.
        everywhere: whether every rank holds the images, so that each reads all it needs; else
            each image is read on one rank, and shared.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    label_shape: tuple[int, ...] = ()
    everywhere: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        """Return images (k, *shape) and labels (k, *label_shape), in the order *chosen*.

        Images have ``dtype``. Called by several threads at a time. Not collective.

        Raises:
            HetmpError: an image cannot be read or is invalid; names the image and the reason.
        """

    def titles(self, chosen: Indices) -> list[str]:
        """Return what people know the images by: their numbers, if there is nothing better."""
        return [str(index) for index in chosen]


# Tensors compare element by element, so the equality that dataclasses offer would raise.
@dataclass(frozen=True, eq=False)
class Split(Part):
    """A part that every rank holds in memory."""

    images: Tensor
    """(n, c, *spatial), float32 or uint8."""
    labels: Tensor
    """int64, each 0 to classes - 1: (n,) for a class per image, (n, *spatial) per pixel."""

    everywhere = True

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise HetmpError(
                f"{len(self.images)} images with {len(self.labels)} labels: "
                "give one label per image"
            )

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.images.shape[1:])

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.images.numpy().dtype

    @property
    def label_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.labels.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, chosen: Indices) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.int64]]:
        return self.images.numpy()[chosen], self.labels.numpy()[chosen]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready to train on."""

    name: str
    """The name that `load` takes."""
    train: Part
    """The training part."""
    test: Part
    """The test part. It shares no image with the training part."""
    classes: int
    """Number of classes."""
    input_shape: tuple[int, ...]
    """Channels, then the spatial sides of one image in pixels."""
    split_name: str
    """Name of the way in which the parts were made; never reused for another way."""
    split_seed: int
    """Which image is in which part, given `split_name`."""
    mean: tuple[float, ...]
    """Per channel, in units of the source: subtracted from both parts."""
    std: tuple[float, ...]
    """Per channel, in units of the source: both parts are then divided by it."""
    normalised: bool = False
    """Whether the parts give images that are normalised already, by `mean` and `std`."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in order; empty where they are unknown."""

    def describe_images(self) -> dict[str, object]:
        """Return what a trained network must know about its images, as plain values."""
        return {
            "shape": list(self.input_shape),
            "label_shape": list(self.train.label_shape),
            "dtype": self.train.dtype.name,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "mean": list(self.mean),
            "std": list(self.std),
            "normalised": self.normalised,
        }
