"""The handwritten digits with a label for every pixel: the digit where there is ink, or paper."""

from dataclasses import replace

import torch

from hetmp.data import digits
from hetmp.data.dataset import Dataset, Split

NAME = "digits-segmentation"

INK = 5
"""The least value of a pixel, 0 (paper) to 16, that counts as ink: about a third of full ink."""

PAPER = 10
"""The class of the pixels that are not ink, after those of the digits 0 to 9."""


def load(split_seed: int) -> Dataset:
    """The images of ``digits``, in the same two parts, with labels (n, 8, 8) of 11 classes.

    Raises:
        HetmpError: *split_seed* is not a whole number of 0 to 2**32 - 1.
    """
    whole = digits.load(split_seed)

    def split(part: Split) -> Split:
        # Whole numbers again: what rounding took from the standardised pixels cannot decide.
        pixels = (part.images.double() * whole.std[0] + whole.mean[0]).round()  # (n, 1, 8, 8)
        ink = pixels.squeeze(1) >= INK
        return Split(part.images, torch.where(ink, part.labels[:, None, None], PAPER))

    return replace(
        whole, name=NAME, train=split(whole.train), test=split(whole.test), classes=PAPER + 1
    )
