"""Training images changed at random: mirrored, and cut out anew."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.data.dataset import Dataset, Indices
from hetmp.data.random_words import Purpose, words

Array = npt.NDArray[np.generic]
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    What does happen depends on the seed, the epoch and the image's number only: it is the same
    for any number of ranks, whichever of them reads the image.

    Attributes:
        flip: every other image, at random, is mirrored left to right.
        crop: an image is padded with zeros by so many pixels in height and width, and its size
            is cut out again anywhere.
    """

    flip: bool = False
    crop: int = 0

    def __bool__(self) -> bool:
        return self.flip or self.crop > 0

    def check(self, dataset: Dataset) -> None:
        """Refuse options that make no sense for the images of *dataset*.

        Raises:
            HetmpError: naming the option.
        """
        if self.crop and dataset.train.label_shape:
            raise HetmpError(
                f"{dataset.name} has a label for every pixel, and the pixels that crop adds have "
                "none: leave out --crop"
            )
        if self.crop and len(dataset.input_shape) < 3:
            raise HetmpError(
                f"crop is for images with height and width, those of {dataset.name} are "
                f"{dataset.input_shape}: leave --crop out"
            )

    def draws(self, seed: int, epoch: int, count: int) -> npt.NDArray[np.uint64]:
        """Return the random words of an epoch, one for each of *count* images.

        They depend on *seed*, *epoch* and the image's number only, so they are alike on every rank.

        Returns:
            (count,), uint64.
        """
        return words(seed, Purpose.AUGMENTATION, epoch, count)

    def apply(
        self,
        images: Array,
        labels: npt.NDArray[np.int64],
        chosen: Indices,
        draws: npt.NDArray[np.uint64],
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """Return changed images (k, c, *spatial) and labels; the arguments stay as they are.

        Args:
            labels: (k,), or (k, *spatial) with one per pixel.
            chosen: (k,), the images' numbers in the data set.
            draws: the words of `draws` for the whole epoch.
        """
        drawn = draws[chosen]
        if self.crop:
            images = self._cropped(images, drawn)
        if self.flip:
            mirrored = (drawn & np.uint64(1)).astype(bool)
            images = _flipped(images, mirrored)
            labels = _flipped(labels, mirrored) if labels.ndim > 1 else labels
        return images, labels

    def _cropped(self, images: Array, drawn: npt.NDArray[np.uint64]) -> Array:
        *_, height, width = images.shape
        still = [(0, 0)] * (images.ndim - 3)  # of one image: all but height and width
        around = [*still, (self.crop, self.crop), (self.crop, self.crop)]
        places = np.uint64(2 * self.crop + 1)
        # The bits that decide are apart from each other and from the one that mirrors.
        tops = ((drawn >> np.uint64(8)) & np.uint64(0xFFFFFF)) % places
        lefts = (drawn >> np.uint64(32)) % places
        cut = np.empty_like(images)
        for i, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
            padded = np.pad(images[i], around)
            cut[i] = padded[..., top : top + height, left : left + width]
        return cut


def _flipped(images: npt.NDArray[_T], mirrored: npt.NDArray[np.bool_]) -> npt.NDArray[_T]:
    flipped = images.copy()
    flipped[mirrored] = images[mirrored][..., ::-1]
    return flipped
