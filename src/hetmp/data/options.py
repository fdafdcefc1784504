"""The settings of a data set."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hetmp.core.checks import whole_number
from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path


@dataclass(frozen=True)
class Options:
    """Settings of a data set; each takes those that apply to it. None: not set.

    Attributes:
        seed: the run's. ``synthetic`` is generated from it; no other depends on it.
        split_seed: which images are test images, where the data does not say.
        test_share: how large a share of the images that is, above 0 and below 1.
        shape: channels, then the spatial sides, of an image.
        classes: how many classes there are.
        samples: how many training images.
        data_path: the file or folder of the data, or of its training part alone.
        test_path: the file or folder of the test part.
        images_key: name of the images within a file.
        labels_key: name of the labels there.
        patch: side, in pixels, of what is cut out around a pixel to be classified; odd.
        disjoint: training and test pixels of a scene so far apart that their patches share none.
        mean: per channel, in units of the source; else of the training part.
        std: likewise, the deviation.
    """

    seed: int = 0
    split_seed: int | None = None
    test_share: float | None = None
    shape: tuple[int, ...] | None = None
    classes: int | None = None
    samples: int | None = None
    data_path: Path | None = None
    test_path: Path | None = None
    images_key: str | None = None
    labels_key: str | None = None
    patch: int | None = None
    disjoint: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, 0)
        if self.split_seed is not None:
            whole_number("split_seed", self.split_seed, 0, 2**32 - 1)
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise HetmpError(f"test_share is above 0 and below 1, got {self.test_share}")
        if (self.mean is None) != (self.std is None):
            raise HetmpError("mean and std belong together: give both, or neither")
        if self.mean and not all(map(math.isfinite, self.mean)):
            raise HetmpError(f"mean is a finite number per channel, got {self.mean}")
        if self.std and not all(math.isfinite(x) and x > 0 for x in self.std):
            raise HetmpError(f"std is a number above 0 per channel, got {self.std}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the settings' names."""
        return tuple(field.name for field in fields(cls))

    def set_values(self) -> dict[str, Any]:
        """Return the settings that are set, except the run's seed, which every run has."""
        values = {name: getattr(self, name) for name in self.names() if name != "seed"}
        return {name: value for name, value in values.items() if value is not None}

    def refuse_others(
        self, name: str, applying: Sequence[str], takers: Mapping[str, Sequence[str]]
    ) -> None:
        """Refuse settings that do not apply to data set *name*.

        Args:
            applying: the settings that do.
            takers: the data sets to which each setting applies.

        Raises:
            HetmpError: naming the setting, and the data sets that take it.
        """
        for option, value in self.set_values().items():
            if option not in applying and not (option == "split_seed" and value == 0):
                text = str(value) if isinstance(value, Path) else repr(value)
                raise HetmpError(
                    f"{option}={text} does not apply to data set {name!r}: "
                    f"leave it out, or choose {' or '.join(map(repr, takers[option]))}"
                )

    def path(self, name: str) -> Path:
        """Return ``data_path``, which data set *name* requires.

        Raises:
            HetmpError: it is not set, or does not exist.
        """
        if self.data_path is None:
            raise HetmpError(
                f"data set {name!r} is read from your own files: say where they are with "
                "data_path (--data-path); data/README.md says what to put there"
            )
        if not os.path.exists(self.data_path):  # Path.exists raises where it may not look
            raise HetmpError(
                f"data_path {self.data_path} does not exist{near_path(self.data_path)}: "
                f"data/README.md says what to put there for data set {name!r}"
            )
        return Path(self.data_path)
