"""The data sets by name."""

from collections.abc import Sequence

from hetmp.checks import whole_number
from hetmp.data import digits, segmentation, synthetic
from hetmp.data.dataset import Dataset
from hetmp.errors import HetmpError, unknown_name

_OF_DIGITS = {digits.NAME: digits.load, segmentation.NAME: segmentation.load}
"""The data sets of the handwritten digits, which take a split seed and nothing else."""


def names() -> list[str]:
    """The data sets, in alphabetical order."""
    return sorted([*_OF_DIGITS, synthetic.NAME])


def load(
    name: str,
    *,
    seed: int = 0,
    split_seed: int = 0,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    samples: int | None = None,
) -> Dataset:
    """The data set *name*, the same on every rank and every machine.

    Args:
        name: one of `names`.
        seed: the run's seed, 0 or more. ``synthetic`` is generated from it; ``digits`` and
            ``digits-segmentation`` do not depend on it.
        split_seed: for ``digits`` and ``digits-segmentation``, which images are test images,
            0 to 2**32 - 1. Apart from *seed*, so that another training run never learns from
            this one's test images.
        shape: for ``synthetic``, (channels, *spatial sides) of an image; (3, 32, 32) if None.
        classes: for ``synthetic``, 2 or more; 10 if None.
        samples: for ``synthetic``, how many training images, 1 or more; 1000 if None.

    Raises:
        HetmpError: an unknown name, a value out of range, an option of another data set.
    """
    if name not in names():
        raise unknown_name("data set", name, names())
    seed = whole_number("seed", seed, 0)
    if name in _OF_DIGITS:
        _refuse(name, {"shape": shape, "classes": classes, "samples": samples}, synthetic.NAME)
        return _OF_DIGITS[name](split_seed)
    _refuse(name, {"split_seed": split_seed or None}, digits.NAME)
    return synthetic.load(seed, shape, classes, samples)


def _refuse(name: str, options: dict[str, object], other: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise HetmpError(
                f"{option}={value!r} does not apply to data set {name!r}: "
                f"leave it out, or choose {other!r}"
            )
