"""Real handwritten digits: 1,797 images of 8x8 pixels that ship inside scikit-learn."""

import math

import torch

from hetmp.data.dataset import Dataset, Split
from hetmp.data.options import Options
from hetmp.data.survey import Found

NAME = "digits"
OPTIONS = ("split_seed",)
SPLIT_NAME = "digits-80-20"
"""1,437 training and 360 test images, stratified by class. Another way gets another name."""


def survey(options: Options) -> Found:
    """Return nothing: every rank has the digits."""
    return {}


def assemble(options: Options, metadata: Found) -> Dataset:
    """Return the digits, standardised with the mean and deviation of the training part.

    Images are (n, 1, 8, 8); the source's pixels are whole numbers, 0 (paper) to 16 (ink).
    """
    split_seed = options.split_seed or 0
    # Takes about a second: not at import, so that listing the data sets stays quick.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)  # (1797, 64) float64, (1797,) int64
    train, test, train_labels, test_labels = train_test_split(
        pixels.reshape(-1, 1, 8, 8),
        labels,
        test_size=0.2,
        stratify=labels,
        random_state=split_seed,
    )
    # One mean for all pixels: those at the rim are 0 in nearly every image, so a deviation of
    # their own would blow up the few strokes that reach them. Pixels are whole numbers, so the
    # sums are exact, and unlike machines get the same bits whatever order they add in.
    n, total, squares = train.size, int(train.sum()), int((train**2).sum())
    mean, std = total / n, math.sqrt(n * squares - total**2) / n

    def split(images: object, of: object) -> Split:
        standardised = (torch.as_tensor(images) - mean) / std
        return Split(standardised.to(torch.float32), torch.as_tensor(of, dtype=torch.int64))

    return Dataset(
        name=NAME,
        train=split(train, train_labels),
        test=split(test, test_labels),
        classes=10,
        input_shape=(1, 8, 8),
        split_name=SPLIT_NAME,
        split_seed=split_seed,
        mean=(mean,),
        std=(std,),
        normalised=True,
    )
