"""The handwritten digits with a label for every pixel: the digit where there is ink, or paper."""

from dataclasses import replace

import torch

from hetmp.data.dataset import Dataset, Part, Split
from hetmp.data.options import Options
from hetmp.data.sets import digits
from hetmp.data.survey import Found

NAME = "digits-segmentation"
OPTIONS = ("split_seed",)

INK = 5
"""The least value of a pixel, 0 (paper) to 16, that counts as ink: about a third of full ink."""

PAPER = 10
"""The class of the pixels that are not ink, after those of the digits 0 to 9."""


def survey(options: Options) -> Found:
    """Return nothing: every rank has the digits."""
    return {}


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the images of ``digits``, in the same parts, with labels (n, 8, 8) of 11 classes."""
    whole = digits.assemble(options, metadata)

    def split(part: Part) -> Split:
        assert isinstance(part, Split)
        # Whole numbers again: what rounding took from the standardised pixels cannot decide.
        pixels = (part.images.double() * whole.std[0] + whole.mean[0]).round()  # (n, 1, 8, 8)
        ink = pixels.squeeze(1) >= INK
        return Split(part.images, torch.where(ink, part.labels[:, None, None], PAPER))

    return replace(
        whole, name=NAME, train=split(whole.train), test=split(whole.test), classes=PAPER + 1
    )
